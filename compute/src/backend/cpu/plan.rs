//! A step's rows in the order in which they are computed: sequences of one adapter stand together,
//! so that each adapter's weights are read once.

use super::adapter::PackedAdapter;
use super::element::Element;
use super::kv::BLOCK_TOKENS;
use super::slots::Slots;
use crate::backend::batch::SequenceId;
use crate::backend::{BackendError, Input, LogitsWanted, SequenceStep, StepBatch};
use lorikeet_contract::BaseModelSpec;
use std::ops::Range;
use std::sync::Arc;

/// Query rows of one head are attended this many tokens at a time.
pub const TASK_TOKENS: usize = 8;

/// What every step of a backend must respect.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_rows: usize,
    pub num_blocks: usize,
}

/// One token position.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub token: u32,
    pub position: usize,
    /// Where its key and value go.
    pub block: u32,
    /// The chunk's last row: no row of this step follows it in its sequence.
    pub last: bool,
}

/// Rows of one adapter.
pub struct Segment<T> {
    pub rows: Range<usize>,
    pub adapter: Arc<PackedAdapter<T>>,
}

/// Some rows of a sequence and one key head.
#[derive(Debug, Clone)]
pub struct AttentionTask {
    pub rows: Range<usize>,
    pub head: usize,
    /// Index into [`StepPlan::blocks`].
    pub blocks: Range<usize>,
    pub thread: usize,
}

/// A row whose logits are wanted.
#[derive(Debug, Clone, Copy)]
pub struct LogitRow {
    pub row: usize,
    /// Index into the batch.
    pub sequence: usize,
    pub sample: bool,
    pub copy: bool,
    pub score: Option<Score>,
}

/// A token whose log probability is wanted, and of how many of the most likely beside it.
#[derive(Debug, Clone, Copy)]
pub struct Score {
    pub token: u32,
    pub top: u8,
}

/// Reused from step to step.
pub struct StepPlan<T> {
    pub rows: Vec<Row>,
    pub segments: Vec<Segment<T>>,
    pub blocks: Vec<u32>,
    pub tasks: Vec<AttentionTask>,
    pub logit_rows: Vec<LogitRow>,
    /// Largest number of ranks that one row takes.
    pub max_ranks: usize,
    order: Vec<usize>,
    loads: Vec<usize>,
}

impl<T: Element> StepPlan<T> {
    pub fn new() -> Self {
        Self {
            rows: Vec::new(),
            segments: Vec::new(),
            blocks: Vec::new(),
            tasks: Vec::new(),
            logit_rows: Vec::new(),
            max_ranks: 0,
            order: Vec::new(),
            loads: Vec::new(),
        }
    }

    /// Lays out a batch for `threads` threads. `previous` gives the tokens sampled by the step before.
    pub fn build(
        &mut self,
        batch: &StepBatch,
        slots: &Slots<T>,
        spec: &BaseModelSpec,
        limits: Limits,
        previous: &[(SequenceId, u32)],
        threads: usize,
    ) -> Result<(), BackendError> {
        self.clear(threads);
        self.order.extend(0..batch.sequences.len());
        self.order.sort_unstable_by_key(|&index| (batch.sequences[index].adapter, index));
        for place in 0..self.order.len() {
            let index = self.order[place];
            let sequence = &batch.sequences[index];
            check(sequence, spec, limits)?;
            let first = self.rows.len();
            if first + sequence.input.rows() > limits.max_rows {
                let most = limits.max_rows;
                return refuse(sequence, format!("the step has more than {most} rows"));
            }
            self.add_rows(sequence, spec, previous)?;
            self.add_segment(sequence, first, slots)?;
            self.add_attention(sequence, first, spec);
            self.add_logits(sequence, index, first);
        }
        Ok(())
    }

    fn clear(&mut self, threads: usize) {
        self.rows.clear();
        self.segments.clear();
        self.blocks.clear();
        self.tasks.clear();
        self.logit_rows.clear();
        self.max_ranks = 0;
        self.order.clear();
        self.loads.clear();
        self.loads.resize(threads, 0);
    }

    fn add_rows(
        &mut self,
        sequence: &SequenceStep,
        spec: &BaseModelSpec,
        previous: &[(SequenceId, u32)],
    ) -> Result<(), BackendError> {
        let sampled;
        let tokens = match &sequence.input {
            Input::Tokens(tokens) => tokens.as_slice(),
            Input::PreviousSample => {
                let Some(&(_, token)) = previous.iter().find(|p| p.0 == sequence.sequence) else {
                    return refuse(sequence, "the step before sampled no token for it".into());
                };
                sampled = [token];
                &sampled
            }
        };
        for (offset, &token) in tokens.iter().enumerate() {
            if token >= spec.vocab_size {
                return refuse(sequence, format!("token {token} is outside the vocabulary"));
            }
            let position = sequence.position as usize + offset;
            let block = sequence.blocks[position / BLOCK_TOKENS].0;
            let last = offset + 1 == tokens.len();
            self.rows.push(Row { token, position, block, last });
        }
        Ok(())
    }

    fn add_segment(
        &mut self,
        sequence: &SequenceStep,
        first: usize,
        slots: &Slots<T>,
    ) -> Result<(), BackendError> {
        let Some(slot) = sequence.adapter else { return Ok(()) };
        let adapter = slots.get(slot)?;
        let end = self.rows.len();
        match self.segments.last_mut() {
            Some(segment) if Arc::ptr_eq(&segment.adapter, adapter) => segment.rows.end = end,
            _ => self.segments.push(Segment { rows: first..end, adapter: adapter.clone() }),
        }
        self.max_ranks = self.max_ranks.max(adapter.max_ranks());
        Ok(())
    }

    /// Cuts the sequence's attention into tasks and gives each to the least loaded thread.
    fn add_attention(&mut self, sequence: &SequenceStep, first: usize, spec: &BaseModelSpec) {
        let first_block = self.blocks.len();
        self.blocks.extend(sequence.blocks.iter().map(|b| b.0));
        for start in (first..self.rows.len()).step_by(TASK_TOKENS) {
            let rows = start..(start + TASK_TOKENS).min(self.rows.len());
            let used = self.rows[rows.end - 1].position / BLOCK_TOKENS + 1;
            let cost = used * rows.len();
            for head in 0..spec.num_kv_heads as usize {
                let thread = least(&self.loads);
                self.loads[thread] += cost;
                let blocks = first_block..first_block + used;
                self.tasks.push(AttentionTask { rows: rows.clone(), head, blocks, thread });
            }
        }
    }

    fn add_logits(&mut self, sequence: &SequenceStep, index: usize, first: usize) {
        let last = self.rows.len() - 1;
        let wanted = sequence.logits;
        let from = match wanted {
            LogitsWanted::All | LogitsWanted::Scores { .. } => first,
            LogitsWanted::None | LogitsWanted::Last => last,
        };
        for row in from..self.rows.len() {
            let is_last = row == last;
            let sample = is_last && sequence.sample.is_some();
            let (copy, score) = match wanted {
                LogitsWanted::None => (false, None),
                LogitsWanted::Last => (is_last, None),
                LogitsWanted::All => (true, None),
                LogitsWanted::Scores { top, next } => {
                    let token = if is_last { next } else { Some(self.rows[row + 1].token) };
                    (false, token.map(|token| Score { token, top }))
                }
            };
            if sample || copy || score.is_some() {
                self.logit_rows.push(LogitRow { row, sequence: index, sample, copy, score });
            }
        }
    }
}

/// The thread with the least to do, the first of equals.
pub fn least(loads: &[usize]) -> usize {
    (0..loads.len()).min_by_key(|&thread| loads[thread]).unwrap_or(0)
}

fn check(
    sequence: &SequenceStep,
    spec: &BaseModelSpec,
    limits: Limits,
) -> Result<(), BackendError> {
    let rows = sequence.input.rows();
    if rows == 0 {
        return refuse(sequence, "it has no rows".into());
    }
    let end = sequence.position as usize + rows;
    if end > spec.context_length as usize {
        return refuse(sequence, format!("position {end} is beyond the context length"));
    }
    if end > sequence.blocks.len() * BLOCK_TOKENS {
        return refuse(sequence, "its blocks do not hold its tokens".into());
    }
    if let Some(block) = sequence.blocks.iter().find(|b| b.0 as usize >= limits.num_blocks) {
        return refuse(sequence, format!("block {} does not exist", block.0));
    }
    Ok(())
}

/// The engine broke the batch's contract: it must not go on as if nothing had happened.
fn refuse<R>(sequence: &SequenceStep, what: String) -> Result<R, BackendError> {
    Err(BackendError::Device(format!("sequence {}: {what}", sequence.sequence.0)))
}
