//! Who loses its blocks when there are too few.

use super::step::lease;
use super::{Order, Scheduler, Sequence, StepPlan};
use crate::adapters::residency::Residency;
use crate::kv::BlockPool;
use lorikeet_compute::backend::batch::SequenceId;
use std::cmp::Reverse;

impl Scheduler {
    /// A block for a running sequence's next token, at the cost of those that come last. False
    /// when the sequence had to give up its own.
    pub(super) fn grow(&mut self, id: SequenceId, kv: &mut BlockPool, plan: &mut StepPlan) -> bool {
        loop {
            let sequence = self.sequences.get_mut(&id).expect("running sequences exist");
            let tokens = sequence.computed + 1;
            if kv.grow(&mut sequence.table, tokens) {
                return true;
            }
            let (_, victim) = self.others().max().expect("a sequence that runs alone has room");
            self.preempt(victim, kv, plan);
            if victim == id {
                return false;
            }
        }
    }

    /// Blocks for the waiting sequence that the last step had too few for: all that it takes, or
    /// none. They are taken from tenants that have had more than its own. A swap must be earned: the
    /// tenant that loses must stay ahead even when the newcomer has been served, and what is computed
    /// twice counts as well. So tenants do not take turns at displacing each other, and less is
    /// computed twice than once.
    pub(super) fn make_way(
        &mut self,
        kv: &mut BlockPool,
        residency: &Residency,
        plan: &mut StepPlan,
    ) {
        let Some(id) = self.blocked.take() else { return };
        let Some(newcomer) = self.sequences.get(&id) else { return };
        // Its adapter may have had to give way since: then it could not use them.
        if lease(newcomer, residency).is_none() {
            return;
        }
        let victims = self.victims();
        for (_, victim) in self.giving_way(&victims, newcomer, kv).unwrap_or_default() {
            self.preempt(*victim, kv, plan);
        }
    }

    /// Those who would lose their blocks to a waiting sequence, as few as it takes; None when it would
    /// not get enough. `victims`: all who might.
    pub(super) fn giving_way<'a>(
        &self,
        victims: &'a [Order],
        newcomer: &Sequence,
        kv: &BlockPool,
    ) -> Option<&'a [Order]> {
        let needed = kv.blocks_for(newcomer.tokens.len());
        let giving = victims.iter().map_while(|(served, victim)| {
            let victim = self.get(*victim)?;
            let price = newcomer.unpaid_cost() + victim.computed_cost();
            let stays_ahead = *served >= self.tenants.served_after(newcomer.account, price);
            stays_ahead.then_some(&victim.table)
        });
        let count = kv.releases_for(needed.saturating_sub(kv.available()), giving)?;
        Some(&victims[..count])
    }

    /// The running sequences but for the one that arrived first, in the order in which they lose their
    /// blocks: who comes last loses them first.
    pub(super) fn victims(&self) -> Vec<Order> {
        let mut victims: Vec<_> = self.others().collect();
        victims.sort_unstable_by_key(|order| Reverse(*order));
        victims
    }

    fn others(&self) -> impl Iterator<Item = Order> {
        let others = self.running.get(1..).unwrap_or_default();
        others.iter().filter_map(|id| self.get(*id)).map(|sequence| self.order(sequence))
    }

    fn preempt(&mut self, id: SequenceId, kv: &mut BlockPool, plan: &mut StepPlan) {
        let sequence = self.sequences.get_mut(&id).expect("running sequences exist");
        kv.release(&mut sequence.table);
        sequence.computed = 0;
        self.tenants.wait(sequence.account, id);
        if let Ok(at) = self.running.binary_search(&id) {
            self.running.remove(at);
        }
        // It may be given blocks again in this very step, and must have its rows only once.
        self.prefills.retain(|other| *other != id);
        plan.preempted += 1;
    }
}
