//! Which sequences run in the next step. A function of state and `now`, std and contract only.
//!
//! Each step has a budget of rows. Decodes come first, so that a long prompt delays nobody's next
//! token; what is left goes to prompts under way, in chunks, and then to waiting sequences: tenants
//! in turn, each tenant's sequences in order of arrival as far as their adapters are there.
//!
//! A running sequence holds its KV blocks, also while its adapter has given way to another. When
//! blocks run out, the sequence that arrived last loses its own and is computed again later, from
//! the prefix cache as far as that still has it. The one that arrived first never does, and every
//! sequence fits the cache alone, so there is always one that gets to its end.

mod map;
mod plan;
mod queue;
mod sequence;

use crate::adapters::residency::{AdapterLease, Residency};
use crate::backend::batch::SequenceId;
use crate::kv::BlockPool;
use queue::TenantQueues;
use std::time::Instant;

pub use map::SequenceMap;
pub use plan::{Commit, PlannedSequence, StepPlan};
pub use sequence::{Ending, NewSequence, Sequence};

/// Limits of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Sequences of one step.
    pub max_num_seqs: usize,
    /// Rows (token positions) of one step, prefill and decode together.
    pub max_num_batched_tokens: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { max_num_seqs: 64, max_num_batched_tokens: 512 }
    }
}

/// What is left of a step's limits.
struct Room {
    sequences: usize,
    rows: usize,
}

impl Room {
    fn is_empty(&self) -> bool {
        self.sequences == 0 || self.rows == 0
    }
}

pub struct Scheduler {
    config: SchedulerConfig,
    sequences: SequenceMap<Box<Sequence>>,
    /// Those that hold blocks, in order of arrival.
    running: Vec<SequenceId>,
    waiting: TenantQueues,
    /// No sequence's deadline is earlier.
    next_deadline: Option<Instant>,
    /// Running sequences with more than one token to feed; reused from step to step.
    prefills: Vec<SequenceId>,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            sequences: SequenceMap::default(),
            running: Vec::new(),
            waiting: TenantQueues::default(),
            next_deadline: None,
            prefills: Vec::new(),
        }
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
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
        let mut sequence = Box::new(Sequence::new(new, kv));
        if let Some(ending) = sequence.refusal(kv) {
            return Err((sequence, ending));
        }
        if let Some(manifest) = adapter {
            match residency.demand(&manifest, share, now) {
                Ok(demand) => sequence.adapter = Some((manifest.key, demand)),
                Err(reason) => return Err((sequence, Ending::AdapterLoad(reason))),
            }
        }
        self.next_deadline = [self.next_deadline, sequence.deadline].into_iter().flatten().min();
        self.waiting.insert(sequence.scope.tenant, sequence.id);
        self.sequences.insert(sequence.id, sequence);
        Ok(())
    }

    /// Ends a sequence at any moment. What a submitted step still draws for it is ignored.
    pub fn remove(&mut self, id: SequenceId, kv: &mut BlockPool) -> Option<Box<Sequence>> {
        let mut sequence = self.sequences.remove(&id)?;
        match self.running.binary_search(&id) {
            Ok(at) => drop(self.running.remove(at)),
            Err(_) => self.waiting.remove(sequence.scope.tenant, id),
        }
        kv.release(&mut sequence.table);
        Some(sequence)
    }

    /// Decides the next step. `plan` is overwritten; its adapter actions must be performed, and
    /// its sequences submitted if there are any.
    pub fn schedule(
        &mut self,
        now: Instant,
        kv: &mut BlockPool,
        residency: &mut Residency,
        plan: &mut StepPlan,
    ) {
        plan.clear();
        self.end_late(now, kv, plan);
        self.end_without_adapter(kv, residency, plan);
        residency.plan(now, &mut plan.actions);
        let mut room =
            Room { sequences: self.config.max_num_seqs, rows: self.config.max_num_batched_tokens };
        self.continue_decodes(now, kv, residency, &mut room, plan);
        self.continue_prefills(now, residency, &mut room, plan);
        self.admit(now, kv, residency, &mut room, plan);
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

    fn end_late(&mut self, now: Instant, kv: &mut BlockPool, plan: &mut StepPlan) {
        if self.next_deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.end_where(kv, plan, |sequence| {
            sequence.deadline.is_some_and(|deadline| deadline <= now).then_some(Ending::Deadline)
        });
        self.next_deadline = self.sequences.values().filter_map(|s| s.deadline).min();
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

    fn continue_decodes(
        &mut self,
        now: Instant,
        kv: &mut BlockPool,
        residency: &mut Residency,
        room: &mut Room,
        plan: &mut StepPlan,
    ) {
        self.prefills.clear();
        let mut at = 0;
        while let Some(id) = self.running.get(at).copied()
            && !room.is_empty()
        {
            at += 1;
            let sequence = self.sequences.get_mut(&id).expect("running sequences exist");
            match sequence.remaining() {
                0 => continue,
                1 => {}
                _ => {
                    self.prefills.push(id);
                    continue;
                }
            }
            let Some(lease) = lease(sequence, residency, now) else { continue };
            let tokens = sequence.computed + 1;
            if kv.grow(&mut sequence.table, tokens) || self.make_room(id, kv, plan) {
                self.plan_rows(id, 1, lease, room, plan);
            }
        }
    }

    /// A block for the sequence's next token, at the cost of those that arrived after it. False
    /// when the sequence had to give up its own.
    fn make_room(&mut self, id: SequenceId, kv: &mut BlockPool, plan: &mut StepPlan) -> bool {
        loop {
            let sequence = self.sequences.get_mut(&id).expect("running sequences exist");
            let tokens = sequence.computed + 1;
            if kv.grow(&mut sequence.table, tokens) {
                return true;
            }
            let last = self.running.pop().expect("the sequence itself is running");
            let victim = self.sequences.get_mut(&last).expect("running sequences exist");
            kv.release(&mut victim.table);
            victim.computed = 0;
            self.waiting.insert(victim.scope.tenant, last);
            plan.preempted += 1;
            if last == id {
                return false;
            }
        }
    }

    fn continue_prefills(
        &mut self,
        now: Instant,
        residency: &mut Residency,
        room: &mut Room,
        plan: &mut StepPlan,
    ) {
        // Blocks for the whole prompt were taken at admission.
        let prefills = std::mem::take(&mut self.prefills);
        for &id in &prefills {
            if room.is_empty() {
                break;
            }
            let sequence = self.sequences.get(&id).expect("nothing ends inside a step's plan");
            if sequence.table.blocks().is_empty() {
                continue; // preempted just now
            }
            let rows = sequence.remaining().min(room.rows);
            if let Some(lease) = lease(sequence, residency, now) {
                self.plan_rows(id, rows, lease, room, plan);
            }
        }
        self.prefills = prefills;
    }

    fn admit(
        &mut self,
        now: Instant,
        kv: &mut BlockPool,
        residency: &mut Residency,
        room: &mut Room,
        plan: &mut StepPlan,
    ) {
        self.waiting.begin_pass();
        while !room.is_empty() {
            let sequences = &self.sequences;
            let next = self.waiting.next(|id| {
                let sequence = sequences.get(&id)?;
                // Its last token is still being drawn by a step submitted before it lost its room.
                if sequence.pending > 0 {
                    return None;
                }
                lease(sequence, residency, now)
            });
            let Some((turn, id, lease)) = next else { return };
            let sequence = self.sequences.get_mut(&id).expect("waiting sequences exist");
            // Whoever lacks room keeps its turn: small prompts do not starve a large one.
            let Some(cached) = kv.admit(sequence.scope, &sequence.tokens, &mut sequence.table)
            else {
                return;
            };
            sequence.admitted(cached, lease.as_ref(), now);
            self.waiting.take(turn);
            let at = self.running.binary_search(&id).unwrap_or_else(|at| at);
            self.running.insert(at, id);
            let rows = sequence.remaining().min(room.rows);
            self.plan_rows(id, rows, lease, room, plan);
        }
    }

    fn plan_rows(
        &mut self,
        id: SequenceId,
        rows: usize,
        lease: Option<AdapterLease>,
        room: &mut Room,
        plan: &mut StepPlan,
    ) {
        let sequence = self.sequences.get_mut(&id).expect("planned sequences exist");
        plan.sequences.push(sequence.plan(rows, lease));
        room.sequences -= 1;
        room.rows -= rows;
    }
}

/// The lease that the sequence's next rows need, if they need one: `Some(None)` for the base
/// model. None while the adapter is not on the device.
fn lease(
    sequence: &Sequence,
    residency: &mut Residency,
    now: Instant,
) -> Option<Option<AdapterLease>> {
    match &sequence.adapter {
        None => Some(None),
        Some((key, _)) => residency.lease(key, now).map(Some),
    }
}

#[cfg(test)]
impl Scheduler {
    pub fn assert_invariants(&self, kv: &BlockPool) {
        kv.assert_invariants(self.sequences.values().map(|sequence| &sequence.table));
        assert!(self.running.is_sorted());
        assert_eq!(self.running.len() + self.waiting.len(), self.sequences.len());
        for sequence in self.sequences.values() {
            let is_running = self.running.binary_search(&sequence.id).is_ok();
            assert_eq!(is_running, !sequence.table.blocks().is_empty());
            let covered = sequence.table.blocks().len();
            assert!(kv.blocks_for(sequence.computed) as usize <= covered);
        }
    }
}
