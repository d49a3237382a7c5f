//! Which sequences run in the next step. A function of state and `now`, std and contract only.
//!
//! Each step has a budget of rows. Decodes come first, so that a long prompt delays nobody's next
//! token; what is left goes to prompts under way, in chunks, and to waiting sequences. Everywhere
//! the tenant that has been served least comes first, and of one tenant the sequence that arrived
//! first (see [`tenants`]). When decodes alone fill a step, a place is kept for a prompt that comes
//! before the last of them; that one pauses and keeps its blocks.
//!
//! A running sequence holds its KV blocks, also while it pauses or its adapter has given way to
//! another. When blocks run out, the sequence that comes last loses its own and is computed again
//! later, from the prefix cache as far as that still has it. Of all that run, the one that arrived
//! first never does, and every sequence fits the cache alone, so there is always one that gets to
//! its end.

mod border;
mod map;
mod plan;
mod preemption;
mod price;
mod sequence;
mod step;
mod tenants;

use crate::adapters::residency::{Claims, Residency};
use crate::kv::BlockPool;
use crate::share::TenantShare;
use lorikeet_compute::backend::BlockMove;
use lorikeet_compute::backend::batch::SequenceId;
use lorikeet_compute::sampling::TokenMask;
use lorikeet_contract::TenantId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use step::Decode;
use tenants::{Served, Tenants};

pub use map::SequenceMap;
pub use plan::{Commit, PlannedSequence, StepPlan};
pub use price::Prices;
pub use sequence::{Ending, NewSequence, Score, Sequence};

/// Limits of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Sequences of one step.
    pub max_num_seqs: usize,
    /// Rows (token positions) of one step, prefill and decode together.
    pub max_num_batched_tokens: usize,
    /// A sequence fails that has had no row so long after its submission.
    pub queue_timeout: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            queue_timeout: Duration::from_secs(120),
        }
    }
}

/// Who comes before whom: the tenant served least, then the sequence that arrived first.
type Order = (Served, SequenceId);

pub struct Scheduler {
    config: SchedulerConfig,
    prices: Prices,
    sequences: SequenceMap<Box<Sequence>>,
    /// Those that hold blocks, in order of arrival.
    running: Vec<SequenceId>,
    tenants: Tenants,
    /// No sequence's deadline is earlier.
    next_deadline: Option<Instant>,
    /// Where the last step's room ended: only what comes before could have had a part of it. None
    /// when there was room for all.
    frontier: Option<Order>,
    /// The waiting sequence that came next in the last step and found too few blocks.
    blocked: Option<SequenceId>,

    // Reused from step to step.
    decodes: Vec<Decode>,
    prefills: Vec<SequenceId>,
    claims: Claims,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig, prices: Prices) -> Self {
        Self {
            config,
            prices,
            sequences: SequenceMap::default(),
            running: Vec::new(),
            tenants: Tenants::default(),
            next_deadline: None,
            frontier: None,
            blocked: None,
            decodes: Vec::new(),
            prefills: Vec::new(),
            claims: Claims::default(),
        }
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.tenants.len()
    }

    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id).map(|sequence| &**sequence)
    }

    /// Takes a sequence in; its adapter's load starts with the next step. Ids must grow. A
    /// sequence that cannot run is handed back with the reason.
    pub fn add(
        &mut self,
        new: NewSequence,
        kv: &BlockPool,
        residency: &mut Residency,
        now: Instant,
    ) -> Result<(), (Box<Sequence>, Ending)> {
        let (adapter, share) = (new.adapter.clone(), new.share);
        let account = self.tenants.open(new.tenant, share.weight);
        let queue_deadline = new.submitted.checked_add(self.config.queue_timeout);
        let mut sequence = Box::new(Sequence::new(new, account, queue_deadline, kv));
        if let Some(ending) = sequence.refusal(kv) {
            return Err((sequence, ending));
        }
        if let Some(manifest) = adapter {
            match residency.demand(&manifest, share, now) {
                Ok(demand) => sequence.adapter = Some((manifest.key, demand)),
                Err(reason) => return Err((sequence, Ending::AdapterLoad(reason))),
            }
        }
        self.next_deadline = self.next_deadline.into_iter().chain(sequence.deadlines()).min();
        self.tenants.arrive(account, sequence.id);
        self.sequences.insert(sequence.id, sequence);
        Ok(())
    }

    /// A tenant has its adapter loaded ahead of requests: it waits for its turn like them, and is
    /// charged for the copy.
    pub fn warms_up(&mut self, tenant: TenantId, share: TenantShare) {
        let account = self.tenants.open(tenant, share.weight);
        self.tenants.lift(account);
    }

    /// The tokens that a sequence's next draw may take. Until it is told after each token, a sequence
    /// that began with such a set sits out the steps.
    pub fn allow(&mut self, id: SequenceId, mask: Arc<TokenMask>) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.allow(mask);
        }
    }

    /// Blocks have [moved](BlockPool::give_up).
    pub fn relocate(&mut self, moves: &[BlockMove]) {
        if moves.is_empty() {
            return;
        }
        for sequence in self.sequences.values_mut() {
            sequence.table.relocate(moves);
        }
    }

    /// Ends a sequence at any moment. What a submitted step still draws for it is ignored.
    pub fn remove(&mut self, id: SequenceId, kv: &mut BlockPool) -> Option<Box<Sequence>> {
        let mut sequence = self.sequences.remove(&id)?;
        match self.running.binary_search(&id) {
            Ok(at) => drop(self.running.remove(at)),
            Err(_) => self.tenants.remove(sequence.account, id),
        }
        kv.release(&mut sequence.table);
        Some(sequence)
    }

    /// Takes up what a collected step has done for one sequence.
    pub fn commit(
        &mut self,
        planned: &PlannedSequence,
        sampled: Option<u32>,
        kv: &mut BlockPool,
    ) -> Commit {
        let Some(sequence) = self.sequences.get_mut(&planned.sequence) else {
            return Commit::Gone;
        };
        let ending = sequence.commit(planned, sampled);
        // Blocks that were given up since are not the ones that this step filled.
        if sequence.admissions == planned.admission && !sequence.table.blocks().is_empty() {
            let computed = &sequence.tokens[..planned.position + planned.rows];
            kv.index(sequence.scope, computed, &mut sequence.table);
        }
        match ending {
            Some(ending) => match self.remove(planned.sequence, kv) {
                Some(sequence) => Commit::Ended(sequence, ending),
                None => Commit::Gone,
            },
            None if planned.samples => Commit::Token,
            None => Commit::Prefilled,
        }
    }

    fn order(&self, sequence: &Sequence) -> Order {
        (self.tenants.served(sequence.account), sequence.id)
    }

    fn end_late(
        &mut self,
        now: Instant,
        kv: &mut BlockPool,
        residency: &Residency,
        plan: &mut StepPlan,
    ) {
        if self.next_deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let is_over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let seconds = self.config.queue_timeout.as_secs();
        self.end_where(kv, plan, |sequence| {
            if is_over(sequence.deadline) {
                return Some(Ending::Deadline);
            }
            if !is_over(sequence.queue_deadline()) {
                return None;
            }
            let waits_for = sequence.adapter().filter(|key| residency.lease(key).is_none());
            Some(match waits_for {
                Some(_) => Ending::AdapterLoad(format!("it was not there within {seconds} s")),
                None => Ending::QueueTimeout { seconds },
            })
        });
        self.next_deadline = self.sequences.values().flat_map(|s| s.deadlines()).min();
    }

    fn end_without_adapter(
        &mut self,
        kv: &mut BlockPool,
        residency: &mut Residency,
        plan: &mut StepPlan,
    ) {
        residency.take_failures(&mut plan.failed_adapters);
        if plan.failed_adapters.is_empty() {
            return;
        }
        let failed = std::mem::take(&mut plan.failed_adapters);
        self.end_where(kv, plan, |sequence| {
            let (key, _) = sequence.adapter.as_ref().filter(|(key, _)| failed.contains(key))?;
            residency.failure(key).map(|reason| Ending::AdapterLoad(reason.to_owned()))
        });
        plan.failed_adapters = failed;
    }

    fn end_where(
        &mut self,
        kv: &mut BlockPool,
        plan: &mut StepPlan,
        ending: impl Fn(&Sequence) -> Option<Ending>,
    ) {
        let mut endings: Vec<(SequenceId, Ending)> =
            self.sequences.values().filter_map(|s| Some((s.id, ending(s)?))).collect();
        endings.sort_unstable_by_key(|(id, _)| *id);
        for (id, ending) in endings {
            plan.ended.extend(self.remove(id, kv).map(|sequence| (sequence, ending)));
        }
    }
}

/// How a tenant stands.
#[cfg(test)]
#[derive(Debug)]
pub struct Standing {
    pub tenant: TenantId,
    pub waits: bool,
    pub served: u64,
    weight: u64,
}

#[cfg(test)]
impl Standing {
    /// What so many tokens of a prompt and of answers count.
    pub fn count(&self, prompt: usize, output: usize) -> u64 {
        let cost = price::Cost::prompt(prompt) + price::Cost::output(output);
        tenants::virtual_cost(cost, self.weight)
    }
}

#[cfg(test)]
impl Scheduler {
    pub fn standings(&self) -> Vec<Standing> {
        let of =
            |(tenant, waits, Served(served), weight)| Standing { tenant, waits, served, weight };
        self.tenants.standings().map(of).collect()
    }

    pub fn assert_invariants(&self, kv: &BlockPool) {
        kv.assert_invariants(self.sequences.values().map(|sequence| &sequence.table));
        assert!(self.running.is_sorted());
        assert_eq!(self.running.len() + self.tenants.len(), self.sequences.len());
        assert!(self.decodes.is_empty(), "a lease outlives its step");
        for sequence in self.sequences.values() {
            let is_running = self.running.binary_search(&sequence.id).is_ok();
            assert_eq!(is_running, !sequence.table.blocks().is_empty());
            let covered = sequence.table.blocks().len();
            assert!(kv.blocks_for(sequence.computed) as usize <= covered);
            let indexed = kv.indexed_tokens(&sequence.table);
            assert!(indexed <= sequence.computed, "others find what is not computed yet");
        }
    }
}
