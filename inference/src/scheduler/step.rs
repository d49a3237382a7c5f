//! One step's rows.

use super::tenants::Turn;
use super::{Order, Scheduler, Sequence, StepPlan};
use crate::adapters::residency::{AdapterAction, AdapterLease, Claim, Residency};
use crate::kv::BlockPool;
use lorikeet_compute::backend::batch::SequenceId;
use std::time::Instant;

/// Steps from when an adapter is told to leave until another in its place can be read.
const SWAP_STEPS: usize = 3;

/// A running sequence that can draw its next token.
pub(super) struct Decode {
    order: Order,
    lease: Option<AdapterLease>,
}

/// What is left of a step's limits.
struct Room {
    sequences: usize,
    rows: usize,
}

impl Room {
    /// Sequences of one row each.
    fn places(&self) -> usize {
        self.sequences.min(self.rows)
    }

    fn is_empty(&self) -> bool {
        self.places() == 0
    }
}

impl Scheduler {
    /// Decides the next step's moves of adapters. `plan` is overwritten; the moves must be performed
    /// before [`Scheduler::schedule`] goes on with it, so that an adapter runs as soon as it is there.
    pub fn move_adapters(
        &mut self,
        now: Instant,
        kv: &mut BlockPool,
        residency: &mut Residency,
        plan: &mut StepPlan,
    ) {
        plan.clear();
        self.end_late(now, kv, residency, plan);
        self.end_without_adapter(kv, residency, plan);
        self.plan_residency(now, kv, residency, plan);
    }

    /// Decides the next step's rows; its sequences must be submitted if there are any.
    pub fn schedule(
        &mut self,
        now: Instant,
        kv: &mut BlockPool,
        residency: &mut Residency,
        plan: &mut StepPlan,
    ) {
        self.make_way(kv, residency, plan);
        let mut room =
            Room { sequences: self.config.max_num_seqs, rows: self.config.max_num_batched_tokens };
        self.tenants.begin_pass();
        self.find_running(residency);
        self.plan_decodes(kv, residency, &mut room, plan);
        self.plan_prompts(now, kv, residency, &mut room, plan);
        self.charge_adapters(now, residency, plan);
    }

    fn plan_residency(
        &mut self,
        now: Instant,
        kv: &BlockPool,
        residency: &mut Residency,
        plan: &mut StepPlan,
    ) {
        self.claims.clear();
        let mut borrowable = 0;
        if residency.is_contended() {
            self.claim(kv, residency);
            borrowable = self.borrowable_blocks(kv);
        }
        residency.plan(now, &self.claims, borrowable, &mut plan.actions);
        residency.yield_blocks(self.lacking_blocks(kv), now, &mut plan.actions);
        for action in &plan.actions {
            if let AdapterAction::Upload { adapter, .. } = action {
                self.tenants.charge_tenant(&adapter.key.tenant, self.prices.swap(adapter));
            }
        }
    }

    /// How each adapter's sequences stand. Those behind the frontier could not run, but for the next
    /// few prompts: their turn comes about when their adapters do. Neither could those that would find
    /// too few blocks.
    fn claim(&mut self, kv: &BlockPool, residency: &Residency) {
        let mut behind = Vec::new();
        let victims = self.victims();
        for sequence in self.sequences.values() {
            let Some(key) = sequence.adapter() else { continue };
            let order = self.order(sequence);
            let new = || Claim { served: order.0.0, runnable: 0, is_new: false };
            let has_room = self.has_room(sequence.id, kv);
            let is_given_room = !has_room && self.giving_way(&victims, sequence, kv).is_some();
            let claim = self.claims.entry(key).or_insert_with(new);
            if !has_room && !is_given_room {
                continue;
            }
            let is_new = sequence.completion_tokens() == 0 && has_room;
            let holds = !sequence.table.blocks().is_empty();
            if holds || self.frontier.is_none_or(|frontier| order < frontier) {
                claim.add(is_new);
            } else {
                behind.push((order, key, is_new, sequence.remaining()));
            }
        }
        // Warmed up, ahead of any sequence.
        for key in residency.awaited() {
            let served = self.tenants.served_by(&key.tenant).0;
            self.claims.entry(key).or_insert(Claim { served, ..Claim::default() });
        }
        if self.blocked.is_some() {
            return;
        }
        behind.sort_unstable();
        let mut rows = SWAP_STEPS * self.config.max_num_batched_tokens;
        for (_, key, is_new, remaining) in behind {
            self.claims.entry(key).and_modify(|claim| claim.add(is_new));
            if remaining >= rows {
                break;
            }
            rows -= remaining;
        }
    }

    /// Sorts what runs into decodes and prompts under way.
    fn find_running(&mut self, residency: &Residency) {
        self.prefills.clear();
        for &id in &self.running {
            let sequence = self.sequences.get(&id).expect("running sequences exist");
            match sequence.remaining() {
                0 => {}
                1 => {
                    if let Some(lease) = lease(sequence, residency) {
                        let order = (self.tenants.served(sequence.account), id);
                        self.decodes.push(Decode { order, lease });
                    }
                }
                _ => self.prefills.push(id),
            }
        }
    }

    fn plan_decodes(
        &mut self,
        kv: &mut BlockPool,
        residency: &Residency,
        room: &mut Room,
        plan: &mut StepPlan,
    ) {
        let mut decodes = std::mem::take(&mut self.decodes);
        if decodes.len() >= room.places() {
            decodes.sort_unstable_by_key(|decode| decode.order);
            decodes.truncate(room.places());
            let last = decodes.last().map(|decode| decode.order);
            let next = self.next_prompt(residency).map(|prompt| prompt.order());
            let next = next.filter(|(_, id)| self.has_room(*id, kv));
            if next.zip(last).is_some_and(|(next, last)| next < last) {
                decodes.pop();
            }
        }
        // First room for all: who loses its blocks must not be in the plan.
        for decode in &decodes {
            let (_, id) = decode.order;
            if !self.is_preempted(id) {
                self.grow(id, kv, plan);
            }
        }
        for Decode { order: (_, id), lease } in decodes.drain(..) {
            if !self.is_preempted(id) {
                self.plan_rows(id, 1, lease, room, plan);
            }
        }
        self.decodes = decodes;
    }

    fn plan_prompts(
        &mut self,
        now: Instant,
        kv: &mut BlockPool,
        residency: &Residency,
        room: &mut Room,
        plan: &mut StepPlan,
    ) {
        self.frontier = None;
        while !room.is_empty()
            && let Some(prompt) = self.next_prompt(residency)
        {
            let (_, id) = prompt.order();
            let sequence = self.sequences.get_mut(&id).expect("prompts are of sequences");
            let lease = match prompt {
                Prompt::Running { at, lease, .. } => {
                    self.prefills.remove(at);
                    lease
                }
                Prompt::Waiting { turn, order, lease } => {
                    let most = sequence.reusable();
                    let Some(cached) = kv.admit_reusing(
                        sequence.scope,
                        &sequence.tokens,
                        most,
                        &mut sequence.table,
                    ) else {
                        // It keeps its turn: small prompts do not starve a large one.
                        self.blocked = Some(id);
                        self.frontier = Some(order);
                        self.tenants.end_pass();
                        continue;
                    };
                    sequence.admitted(cached, lease.as_ref(), now);
                    self.tenants.take(turn);
                    let at = self.running.binary_search(&id).unwrap_or_else(|at| at);
                    self.running.insert(at, id);
                    lease
                }
            };
            let sequence = self.sequences.get(&id).expect("prompts are of sequences");
            let rows = sequence.remaining().min(room.rows);
            self.plan_rows(id, rows, lease, room, plan);
        }
        if room.is_empty() {
            let planned = plan.sequences.iter().filter_map(|planned| self.get(planned.sequence));
            let last = planned.map(|sequence| self.order(sequence)).max();
            self.frontier = [self.frontier, last].into_iter().flatten().min();
        }
    }

    /// Of prompts under way and waiting sequences, the one that comes first and can run.
    fn next_prompt(&mut self, residency: &Residency) -> Option<Prompt> {
        let running = self.prefills.iter().enumerate().filter_map(|(at, id)| {
            let sequence = self.get(*id).filter(|s| !s.table.blocks().is_empty())?;
            let lease = lease(sequence, residency)?;
            Some(Prompt::Running { at, order: self.order(sequence), lease })
        });
        let running = running.min_by_key(Prompt::order);
        let sequences = &self.sequences;
        let waiting = self.tenants.next(|id| {
            let sequence = sequences.get(&id)?;
            // Its last token is still being drawn by a step submitted before it lost its room, or what
            // may follow that token is not known.
            if sequence.pending > 0 || sequence.awaits_mask() {
                return None;
            }
            lease(sequence, residency)
        });
        let waiting = waiting.map(|(turn, id, lease)| {
            let order = (self.tenants.served(turn.account), id);
            Prompt::Waiting { turn, order, lease }
        });
        [running, waiting].into_iter().flatten().min_by_key(Prompt::order)
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
        let (planned, cost) = sequence.plan(rows, lease);
        self.tenants.charge(sequence.account, cost);
        plan.sequences.push(planned);
        room.sequences -= 1;
        room.rows -= rows;
    }

    /// Each adapter of the step is read once, whatever number of its sequences share that.
    fn charge_adapters(&mut self, now: Instant, residency: &mut Residency, plan: &StepPlan) {
        for planned in &plan.sequences {
            let Some(lease) = &planned.lease else { continue };
            if !residency.runs(lease.slot(), now) {
                continue;
            }
            let sequence = self.sequences.get(&planned.sequence).expect("planned sequences exist");
            let cost = self.prices.adapter_read(sequence.adapter_bytes);
            self.tenants.charge(sequence.account, cost);
        }
    }

    fn is_preempted(&self, id: SequenceId) -> bool {
        self.get(id).is_none_or(|sequence| sequence.table.blocks().is_empty())
    }

    /// It runs, or there are blocks for it to start with.
    fn has_room(&self, id: SequenceId, kv: &BlockPool) -> bool {
        self.get(id).is_some_and(|sequence| {
            let needed = kv.blocks_for(sequence.tokens.len());
            !sequence.table.blocks().is_empty() || needed <= kv.available()
        })
    }
}

/// A sequence with more than its latest token to compute.
enum Prompt {
    /// `at`: its place among the prompts under way.
    Running {
        at: usize,
        order: Order,
        lease: Option<AdapterLease>,
    },
    Waiting {
        turn: Turn,
        order: Order,
        lease: Option<AdapterLease>,
    },
}

impl Prompt {
    fn order(&self) -> Order {
        match self {
            Prompt::Running { order, .. } | Prompt::Waiting { order, .. } => *order,
        }
    }
}

/// The lease that the sequence's next rows need, if they need one: `Some(None)` for the base
/// model. None while the adapter is not on the device.
pub(super) fn lease(sequence: &Sequence, residency: &Residency) -> Option<Option<AdapterLease>> {
    match &sequence.adapter {
        None => Some(None),
        Some((key, _)) => residency.lease(key).map(Some),
    }
}
