//! The CPU backend: hand-written bf16 kernels over packed weights, and a few threads that walk
//! through a step together.
//!
//! ```text
//! submit -> plan (rows sorted by adapter) -> forward (phases, barriers) -> output (draw)
//! prepare -> adapter (pack, DoRA norms), beside the steps; begin_upload -> slots -> poll_uploads
//! ```
//! The device is host memory, too: an adapter is packed when it comes there, and a slot only shares
//! what was packed, so that a swap moves nothing.
//!
//! A step runs inside `submit`, with the calling thread as one of the workers; `collect` hands its
//! output over. A sequence's result is the same bit for bit whatever else is in the batch: each
//! row's sums have an order of their own (see [`kernel`]).

mod adapter;
mod attention;
mod element;
mod forward;
mod kernel;
mod kv;
mod memory;
mod model;
mod output;
mod pack;
mod plan;
mod pool;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod vector;

use super::batch::SequenceId;
use super::{
    AdapterSlot, Backend, BackendError, Capacity, HostAdapter, HostAllocator, SequenceOutput,
    StepBatch, StepOutput, StepTicket, UploadDone,
};
use crate::model::ModelWeights;
use adapter::Packer;
use element::Element;
use forward::{Buffers, Scratch, Step};
use half::bf16;
use kernel::Isa;
use kv::{BLOCK_TOKENS, KvCache};
use lorikeet_contract::adapter::ArtifactHeader;
use model::PackedModel;
use output::{Drawn, OutputBuffers, RowOutput};
use plan::{Limits, StepPlan};
use pool::Pool;
use slots::Slots;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuConfig {
    /// Tokens whose keys and values are kept; rounded up to whole blocks.
    pub kv_tokens: usize,
    /// Bytes of packed adapters.
    pub adapter_bytes: u64,
    pub max_slots: u32,
    /// Rows of the largest step.
    pub max_rows: usize,
    /// Including the thread that calls `submit`.
    pub threads: usize,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self {
            kv_tokens: 32 * 1024,
            adapter_bytes: 256 << 20,
            max_slots: 256,
            max_rows: 512,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
        }
    }
}

/// Weights, activations into the kernels, keys and values in `T`; everything else in f32.
pub(crate) struct CpuBackend<T = bf16> {
    model: Arc<PackedModel<T>>,
    limits: Limits,
    max_slots: u32,
    adapter_bytes: u64,
    isa: Isa,
    slots: Slots<T>,
    kv: KvCache<T>,
    buffers: Buffers<T>,
    output: OutputBuffers<T>,
    plan: StepPlan<T>,
    pool: Pool,
    threads: Vec<Mutex<ThreadState<T>>>,
    finished: VecDeque<StepOutput>,
    previous: Vec<(SequenceId, u32)>,
    // Reused from step to step.
    results: Vec<(usize, RowOutput)>,
    spare_outputs: Vec<Vec<SequenceOutput>>,
}

/// Each thread locks its own, once per step.
struct ThreadState<T> {
    scratch: Scratch<T>,
    drawn: Drawn,
}

/// The backend in bf16. The one way to it from other crates: generic code is compiled where it is first
/// used with its types, and this crate is the one that is built to be fast.
pub fn backend(
    weights: &ModelWeights,
    config: CpuConfig,
) -> Result<Box<dyn Backend>, BackendError> {
    Ok(Box::new(CpuBackend::new(weights, config)?))
}

impl CpuBackend<bf16> {
    /// Packs the weights; they are not needed afterwards. An error when they are not of the sizes
    /// that their configuration says.
    pub fn new(weights: &ModelWeights, config: CpuConfig) -> Result<Self, BackendError> {
        Self::with_isa(weights, config, Isa::detect())
    }
}

#[cfg(test)]
impl CpuBackend<f32> {
    /// Computes in f32 throughout: slow, for comparison with exact references.
    pub(crate) fn exact(weights: &ModelWeights, config: CpuConfig) -> Result<Self, BackendError> {
        Self::with_isa(weights, config, Isa::detect())
    }
}

impl<T: Element> CpuBackend<T> {
    fn with_isa(weights: &ModelWeights, config: CpuConfig, isa: Isa) -> Result<Self, BackendError> {
        let threads = config.threads.max(1);
        let model = Arc::new(PackedModel::new(weights, threads)?);
        let num_blocks = config.kv_tokens.div_ceil(BLOCK_TOKENS);
        let failed = |what: &str, e: std::io::Error| BackendError::Device(format!("{what}: {e}"));
        let scratch =
            || ThreadState { scratch: Scratch::new(&model, num_blocks), drawn: Drawn::default() };
        let vocabulary = model.lm_head.outputs();
        Ok(Self {
            limits: Limits { max_rows: config.max_rows, num_blocks },
            max_slots: config.max_slots,
            adapter_bytes: config.adapter_bytes,
            isa,
            slots: Slots::new(config.max_slots, config.adapter_bytes),
            kv: KvCache::new(model.layers.len(), num_blocks, model.kv_heads(), model.head_dim()),
            buffers: Buffers::new(&model, config.max_rows),
            output: OutputBuffers::new(model.hidden(), vocabulary, config.max_rows),
            plan: StepPlan::new(),
            pool: Pool::new(threads).map_err(|e| failed("a thread does not start", e))?,
            threads: (0..threads).map(|_| Mutex::new(scratch())).collect(),
            finished: VecDeque::new(),
            previous: Vec::new(),
            results: Vec::new(),
            spare_outputs: Vec::new(),
            model,
        })
    }

    fn execute(&mut self, batch: &StepBatch) -> Result<StepOutput, BackendError> {
        let step = Step {
            model: &self.model,
            plan: &self.plan,
            buffers: &self.buffers,
            kv: &self.kv,
            isa: self.isa,
        };
        let (threads, output) = (&self.threads, &self.output);
        let job = |member: pool::Member| {
            // A poisoned state is of a step that failed; the pool then runs no other.
            let state = threads[member.thread].lock();
            let state = &mut *state.unwrap_or_else(PoisonError::into_inner);
            step.run(member, &mut state.scratch);
            step.run_output(member, batch, output, &mut state.drawn);
        };
        self.pool.run(&job).map_err(|e| BackendError::Device(e.to_string()))?;
        Ok(self.gather(batch))
    }

    /// Puts what the threads drew into the order of the batch.
    fn gather(&mut self, batch: &StepBatch) -> StepOutput {
        let empty = |sequence| SequenceOutput {
            sequence,
            sampled: None,
            logits: Vec::new(),
            scores: Vec::new(),
        };
        let mut sequences = self.spare_outputs.pop().unwrap_or_default();
        sequences.extend(batch.sequences.iter().map(|s| empty(s.sequence)));
        self.previous.clear();
        for state in &mut self.threads {
            let state = state.get_mut().unwrap_or_else(PoisonError::into_inner);
            self.results.append(&mut state.drawn.results);
        }
        self.results.sort_unstable_by_key(|(index, _)| *index);
        for (index, result) in self.results.drain(..) {
            let output = &mut sequences[self.plan.logit_rows[index].sequence];
            output.logits.extend(result.logits);
            output.scores.extend(result.score);
            if let Some(sampled) = result.sampled {
                self.previous.push((output.sequence, sampled.token));
                output.sampled = Some(sampled);
            }
        }
        StepOutput { step: batch.step, sequences }
    }
}

impl<T: Element> Backend for CpuBackend<T> {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            num_blocks: self.limits.num_blocks as u32,
            block_bytes: 0,
            least_blocks: 0,
            block_size: BLOCK_TOKENS as u32,
            adapter_bytes: self.adapter_bytes,
            max_slots: self.max_slots,
            max_rows: self.limits.max_rows as u32,
            pipeline_depth: 1,
        }
    }

    fn host_allocator(&self) -> Arc<dyn HostAllocator> {
        Arc::new(Packer::new(self.model.clone()))
    }

    fn adapter_bytes(&self, header: &ArtifactHeader) -> u64 {
        adapter::packed_bytes::<T>(header)
    }

    fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
    ) -> Result<(), BackendError> {
        let bytes = self.adapter_bytes(&adapter.header);
        self.slots.begin_upload(slot, &adapter, bytes)
    }

    fn poll_uploads(&mut self, done: &mut Vec<UploadDone>) {
        self.slots.poll(done);
    }

    fn evict(&mut self, slot: AdapterSlot) {
        self.slots.evict(slot);
    }

    fn submit(&mut self, batch: &StepBatch) -> Result<StepTicket, BackendError> {
        let threads = self.pool.threads();
        self.plan.build(
            batch,
            &self.slots,
            &self.model.spec,
            self.limits,
            &self.previous,
            threads,
        )?;
        self.buffers.reserve_ranks(self.plan.max_ranks);
        let output = self.execute(batch);
        // An adapter evicted after this step must not live on in its plan.
        self.plan.segments.clear();
        self.finished.push_back(output?);
        Ok(StepTicket(batch.step))
    }

    fn recycle(&mut self, output: StepOutput) {
        let mut sequences = output.sequences;
        sequences.clear();
        self.spare_outputs.push(sequences);
    }

    fn collect(&mut self, ticket: StepTicket) -> Result<StepOutput, BackendError> {
        match self.finished.pop_front() {
            Some(output) if output.step == ticket.0 => Ok(output),
            _ => Err(BackendError::Device(format!("step {} was not submitted", ticket.0))),
        }
    }
}
