//! What the scheduler decides, and what becomes of it.

use super::sequence::{Ending, Sequence};
use crate::adapters::AdapterKey;
use crate::adapters::residency::{AdapterAction, AdapterLease};
use lorikeet_compute::backend::batch::SequenceId;

/// One step. The vectors are reused from step to step.
#[derive(Default)]
pub struct StepPlan {
    /// Each sequence at most once.
    pub sequences: Vec<PlannedSequence>,
    pub actions: Vec<AdapterAction>,
    /// Sequences that ended without running in this step. Their blocks are free.
    pub ended: Vec<(Box<Sequence>, Ending)>,
    /// Sequences that lost their blocks.
    pub preempted: u32,
    /// Adapters whose loads failed since the step before.
    pub failed_adapters: Vec<AdapterKey>,
}

impl StepPlan {
    pub fn clear(&mut self) {
        self.sequences.clear();
        self.actions.clear();
        self.ended.clear();
        self.preempted = 0;
        self.failed_adapters.clear();
    }
}

/// One sequence's rows of a step.
#[derive(Debug, Clone)]
pub struct PlannedSequence {
    pub sequence: SequenceId,
    /// Of the first row.
    pub position: usize,
    pub rows: usize,
    /// The sequence had no rows before: what it found in the cache is known now.
    pub is_first: bool,
    /// The last row is the last token known, or being drawn: it gives the next one.
    pub samples: bool,
    /// The one row is the latest token of the answer.
    pub is_decode: bool,
    /// The one row is the token that the step before is still drawing.
    pub follows_pending: bool,
    /// Held until the step has been collected. None: the base model.
    pub lease: Option<AdapterLease>,
    /// Tells apart the blocks that a sequence had before and after it lost them.
    pub admission: u32,
}

/// What a collected step has done for one sequence.
pub enum Commit {
    /// It has ended in the meantime.
    Gone,
    /// A part of its prompt was computed.
    Prefilled,
    Token,
    /// A token, the last one. The sequence's blocks are free.
    Ended(Box<Sequence>, Ending),
}
