//! What a submitted step gives back: copied to pinned memory when the device has come that far.

use super::device::{Device, Event, PinnedMemory, Stream};
use super::error::CudaError;
use super::layout::{COPIED, Draw, NO_LOGPROBS, TOP_LOGPROBS};
use super::plan::{LogitRow, StepPlan};
use super::workspace::Buffers;
use crate::backend::batch::SequenceId;
use crate::backend::{HostBuffer, SampledToken, SequenceOutput, StepBatch, StepOutput};
use std::sync::Arc;

/// Pinned memory for one step's draws, used again by later ones.
pub struct DrawMemory {
    done: Event,
    tokens: PinnedMemory,
    /// Log probabilities of the drawn, then ids and log probabilities of the likeliest.
    logprobs: PinnedMemory,
    top_ids: PinnedMemory,
    top_logprobs: PinnedMemory,
}

impl DrawMemory {
    pub fn new(device: &Arc<Device>, max_rows: u32) -> Result<Self, CudaError> {
        let rows = max_rows as usize;
        let top = rows * TOP_LOGPROBS as usize;
        Ok(Self {
            done: device.event(false)?,
            tokens: device.pinned(rows * 4)?,
            logprobs: device.pinned(rows * 4)?,
            top_ids: device.pinned(top * 4)?,
            top_logprobs: device.pinned(top * 4)?,
        })
    }
}

/// A step under way.
pub struct Pending {
    step: u64,
    sequences: Vec<SequenceId>,
    rows: Vec<LogitRow>,
    /// How many likeliest tokens each row wants; [`NO_LOGPROBS`] for none.
    logprobs: Vec<u32>,
    vocabulary: usize,
    memory: DrawMemory,
    /// All rows' logits, when some are wanted: for tests, not for serving.
    logits: Option<PinnedMemory>,
}

impl Pending {
    pub fn new(
        device: &Arc<Device>,
        batch: &StepBatch,
        plan: &StepPlan,
        vocabulary: u32,
        memory: DrawMemory,
    ) -> Result<Self, CudaError> {
        let vocabulary = vocabulary as usize;
        let wants = |d: &Draw| if d.wanted == COPIED { NO_LOGPROBS } else { d.logprobs };
        let logits = if plan.logits.iter().any(|l| l.copy) {
            Some(device.pinned(plan.logits.len() * vocabulary * 4)?)
        } else {
            None
        };
        Ok(Self {
            step: batch.step,
            sequences: batch.sequences.iter().map(|s| s.sequence).collect(),
            rows: plan.logits.clone(),
            logprobs: plan.draws.iter().map(wants).collect(),
            vocabulary,
            memory,
            logits,
        })
    }

    pub fn step(&self) -> u64 {
        self.step
    }

    /// Copies `count` rows of logits, that of the step's logit `first` first, if any is wanted.
    pub fn copy_logits(
        &mut self,
        stream: &Stream,
        buffers: &Buffers,
        first: u32,
        count: u32,
    ) -> Result<(), CudaError> {
        let Some(logits) = &mut self.logits else { return Ok(()) };
        let row = self.vocabulary * 4;
        let place = &mut logits.as_mut_slice()[first as usize * row..][..count as usize * row];
        // SAFETY: `collect` waits before it reads, and dropping waits for the stream.
        unsafe { stream.download(place, buffers.logits) }
    }

    pub fn copy_draws(&mut self, stream: &Stream, buffers: &Buffers) -> Result<(), CudaError> {
        let rows = self.rows.len() * 4;
        let memory = &mut self.memory;
        let mut copies = vec![(&mut memory.tokens, buffers.tokens, rows)];
        if self.logprobs.iter().any(|&n| n != NO_LOGPROBS) {
            let top = rows * TOP_LOGPROBS as usize;
            copies.push((&mut memory.logprobs, buffers.logprobs, rows));
            copies.push((&mut memory.top_ids, buffers.top_ids, top));
            copies.push((&mut memory.top_logprobs, buffers.top_logprobs, top));
        }
        for (to, from, bytes) in copies {
            // SAFETY: as above.
            unsafe { stream.download(&mut to.as_mut_slice()[..bytes], from) }?;
        }
        Ok(())
    }

    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.record(&self.memory.done)
    }

    /// Waits for the step; gives its memory back.
    pub fn collect(self) -> Result<(StepOutput, DrawMemory), CudaError> {
        self.memory.done.synchronize()?;
        let empty = |&sequence| SequenceOutput {
            sequence,
            sampled: None,
            logits: Vec::new(),
            scores: Vec::new(),
        };
        let mut sequences: Vec<SequenceOutput> = self.sequences.iter().map(empty).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let output = &mut sequences[row.sequence];
            if let (true, Some(logits)) = (row.copy, &self.logits) {
                let all: &[f32] = bytemuck::cast_slice(logits.as_slice());
                output.logits.push(all[index * self.vocabulary..][..self.vocabulary].to_vec());
            }
            if row.sample {
                output.sampled = Some(self.token(index));
            } else if row.score {
                output.scores.push(self.token(index));
            }
        }
        Ok((StepOutput { step: self.step, sequences }, self.memory))
    }

    /// What was drawn or scored at a row.
    fn token(&self, index: usize) -> SampledToken {
        let word = |memory: &PinnedMemory, at: usize| -> u32 {
            bytemuck::cast_slice::<u8, u32>(memory.as_slice())[at]
        };
        let logprob = |memory: &PinnedMemory, at: usize| f32::from_bits(word(memory, at));
        let (memory, wanted) = (&self.memory, self.logprobs[index]);
        let token = word(&memory.tokens, index);
        if wanted == NO_LOGPROBS {
            return SampledToken { token, logprob: None, top_logprobs: Vec::new() };
        }
        let first = index * TOP_LOGPROBS as usize;
        let likeliest = |at| (word(&memory.top_ids, at), logprob(&memory.top_logprobs, at));
        SampledToken {
            token,
            logprob: Some(logprob(&memory.logprobs, index)),
            top_logprobs: (first..first + wanted as usize).map(likeliest).collect(),
        }
    }
}
