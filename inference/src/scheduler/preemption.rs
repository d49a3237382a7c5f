//! Who loses its blocks when there are too few.

use super::{Order, Scheduler, Sequence, StepPlan};
use crate::kv::BlockPool;
use lorikeet_compute::backend::batch::SequenceId;

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
            let (_, victim) = self.victim().expect("a sequence that runs alone has room");
            self.preempt(victim, kv, plan);
            if victim == id {
                return false;
            }
        }
    }

    /// Blocks for the waiting sequence that the last step had too few for, taken from tenants that
    /// have had more than its own. A swap must be earned: the tenant that loses must stay ahead even
    /// when the newcomer has been served, and what is computed twice counts as well. So tenants do
    /// not take turns at displacing each other, and less is computed twice than once.
    pub(super) fn make_way(&mut self, kv: &mut BlockPool, plan: &mut StepPlan) {
        let Some(newcomer) = self.blocked.take() else { return };
        loop {
            let Some(sequence) = self.sequences.get(&newcomer) else { return };
            if kv.blocks_for(sequence.tokens.len()) <= kv.available() {
                return;
            }
            let last = self.victim().filter(|last| self.gives_way(*last, sequence));
            let Some((_, victim)) = last else { return };
            self.preempt(victim, kv, plan);
        }
    }

    /// The sequence that comes last would lose its blocks to one that waits for some.
    pub(super) fn gives_way(&self, (served, victim): Order, newcomer: &Sequence) -> bool {
        let lost = self.get(victim).map(Sequence::computed_cost).unwrap_or_default();
        let price = newcomer.unpaid_cost() + lost;
        served >= self.tenants.served_after(newcomer.account, price)
    }

    /// The running sequence that comes last, of all but the one that arrived first.
    pub(super) fn victim(&self) -> Option<Order> {
        let others = self.running.get(1..)?;
        others.iter().filter_map(|id| self.get(*id)).map(|sequence| self.order(sequence)).max()
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
