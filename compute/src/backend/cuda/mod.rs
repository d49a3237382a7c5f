//! The CUDA backend: cublasLt for the products with the base weights, kernels of our own for
//! everything else, compiled when the node starts. Nothing CUDA is needed to build, or to run
//! without a GPU.
//!
//! ```text
//! submit -> plan (tiles, attention items) -> workspace (copy) -> forward (launches) -> event
//! collect -> wait for the event -> output
//! begin_upload -> arena (extent) -> adapters (upload thread: copy, convert, DoRA) -> poll_uploads
//! ```
//! All steps run in order on one stream, adapters are copied on another. What moves in the arena moves
//! between the steps. Two steps may be under way: the input token of a row may still be on the device.

mod adapters;
mod arena;
mod budget;
pub mod check;
mod counters;
mod device;
mod error;
mod forward;
mod gemm;
mod graph;
mod kernels;
mod launch;
mod layout;
mod moving;
mod nvrtc;
mod output;
mod pinned;
mod plan;
mod probe;
mod staging;
mod start;
#[cfg(test)]
mod tests;
mod weights;
mod workspace;

pub use counters::Counters;
pub use error::CudaError;
pub use probe::{DeviceInfo, cache_folder, probe};
pub use start::StartTimes;
pub use weights::Precision;

use super::batch::SequenceId;
use super::{
    AdapterSlot, Backend, BackendError, BlockMove, Capacity, HostAdapter, HostAllocator, StepBatch,
    StepOutput, StepTicket, UploadDone,
};
use crate::model::{ModelConfig, ModelWeights};
use adapters::Adapters;
use arena::Division;
use device::{Device, DeviceMemory, Stream};
use gemm::{Gemm, row_buckets};
use graph::Graph;
use kernels::{Kernels, Target};
use launch::GraphKey;
use layout::{BLOCK_TOKENS, ExtentLayout};
use lorikeet_contract::adapter::ArtifactHeader;
use moving::Mover;
use output::{DrawMemory, Pending};
use pinned::PinnedPool;
use plan::{Limits, StepPlan};
use start::Laps;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use weights::DeviceWeights;
use workspace::{Buffers, LOGIT_ROWS, PlanMemory};

/// Steps that may be submitted and not yet collected.
const DEPTH: usize = 2;
/// Steps of up to so many rows are measured where no number is given.
const MOST_MEASURED_ROWS: u32 = 1024;
/// Device memory left to the driver and to libraries.
const RESERVE: u64 = 1 << 30;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaConfig {
    pub ordinal: u32,
    /// Tokens whose keys and values there is always room for; None: a quarter of what is left to them.
    pub kv_tokens: Option<u64>,
    /// Bytes that adapters always have, and so those of the largest one; None: an eighth of the memory
    /// that is left. When both are given, the rest of the memory is not used, and neither side lends.
    pub adapter_bytes: Option<u64>,
    pub max_slots: u32,
    /// Rows of the largest step; None: those that cost least each within a bound on the step's time,
    /// measured at the start.
    pub max_rows: Option<u32>,
    /// Of the layers' weights.
    pub precision: Precision,
    /// Of keys and values. In e4m3, each head of a token has a scale of its own.
    pub kv_precision: Precision,
    /// Page-locked host memory for adapters that is made ready beside the start; more is taken when it
    /// is needed.
    pub pinned_bytes: u64,
    /// A folder whose kernels take the place of those built in, for work on them.
    pub kernel_sources: Option<PathBuf>,
    /// Where compiled kernels and picked products are kept. None: nowhere.
    pub cache: Option<PathBuf>,
}

impl Default for CudaConfig {
    fn default() -> Self {
        Self {
            ordinal: 0,
            kv_tokens: None,
            adapter_bytes: None,
            max_slots: 1024,
            max_rows: Some(2048),
            precision: Precision::Bf16,
            kv_precision: Precision::Bf16,
            pinned_bytes: 0,
            kernel_sources: None,
            cache: cache_folder().map(|dir| dir.join("cuda")),
        }
    }
}

/// Weights, activations, keys and values in bf16; the residual stream, sums and logits in f32.
pub struct CudaBackend {
    // Dropped first: its thread uses what follows.
    adapters: Adapters,
    device: Arc<Device>,
    stream: Stream,
    kernels: Arc<Kernels>,
    weights: Arc<DeviceWeights>,
    gemm: Gemm,
    buffers: Buffers,
    plan_memory: PlanMemory,
    plan: StepPlan,
    limits: Limits,
    capacity: Capacity,
    buckets: Vec<u32>,
    head_buckets: Vec<u32>,
    arena: DeviceMemory,
    mover: Mover,
    pinned: PinnedPool,
    graphs: HashMap<GraphKey, Graph>,
    recordings: u64,
    replays: u64,
    pending: VecDeque<Pending>,
    /// For the steps that may yet be submitted.
    draw_memory: Vec<DrawMemory>,
    submitted: usize,
    /// Who was sampled for by the last step submitted, in the order of its draws.
    previous: Vec<Option<SequenceId>>,
    start: StartTimes,
}

impl CudaBackend {
    /// Copies the weights to the device; they are not needed afterwards.
    pub fn new(weights: &ModelWeights, config: CudaConfig) -> Result<Self, BackendError> {
        Self::start(weights.config.spec.head_dim, config, |device, stream, kernels| {
            DeviceWeights::load(device, stream, kernels, weights)
        })
    }

    /// Seeded random weights of the model's shapes, for measuring without its files.
    pub fn dummy(model: &ModelConfig, seed: u64, config: CudaConfig) -> Result<Self, BackendError> {
        Self::start(model.spec.head_dim, config, |device, stream, kernels| {
            DeviceWeights::dummy(device, stream, kernels, model, seed)
        })
    }

    fn start(
        head_dim: u32,
        config: CudaConfig,
        weights: impl FnOnce(&Arc<Device>, &Stream, &Kernels) -> Result<DeviceWeights, CudaError>,
    ) -> Result<Self, BackendError> {
        let mut laps = Laps::begin();
        let (device, stream, kernels) = open(&config, head_dim)?;
        let kernels_took = laps.lap();
        let weights = weights(&device, &stream, &kernels)?;
        let weights_took = laps.lap();
        let max_rows = config.max_rows;
        let mut backend = Self::with_weights(device, stream, kernels, weights, config)?;
        let memory = laps.lap();
        backend.plan_products()?;
        if max_rows.is_none() {
            backend.measure_rows()?;
        }
        let products = laps.lap();
        backend.start =
            StartTimes { kernels: kernels_took, weights: weights_took, memory, products };
        Ok(backend)
    }

    /// What the parts of the start took.
    pub fn start_times(&self) -> StartTimes {
        self.start
    }

    pub fn counters(&self) -> Counters {
        Counters {
            allocations: self.device.allocations(),
            waits: self.device.waits(),
            recordings: self.recordings,
            replays: self.replays,
        }
    }

    fn with_weights(
        device: Arc<Device>,
        stream: Stream,
        kernels: Kernels,
        weights: DeviceWeights,
        config: CudaConfig,
    ) -> Result<Self, BackendError> {
        let spec = weights.config.spec.clone();
        let max_rows = config.max_rows.unwrap_or(MOST_MEASURED_ROWS).max(1);
        let buffers = Buffers::new(&device, &spec, max_rows)?;
        let pinned = PinnedPool::new(&device, config.pinned_bytes);
        let gemm = Gemm::new(&device, config.cache)?;
        let mover = Mover::new(&device)?;
        let page = kv_page_bytes(&spec, config.kv_precision);
        let (free, _) = device.memory()?;
        let least = config.kv_tokens.map(|tokens| tokens.div_ceil(BLOCK_TOKENS.into()));
        let room = free.saturating_sub(RESERVE);
        let division = Division::new(room, page, least, config.adapter_bytes)?;
        let Division { num_blocks, least_blocks, adapter_bytes } = division;
        let what = "device memory for keys, values and adapters";
        let arena = device.allocate(what, division.bytes(page))?;
        let (kernels, weights) = (Arc::new(kernels), Arc::new(weights));
        let limits =
            Limits { spec, max_rows, num_blocks, multiprocessors: kernels.multiprocessors() };
        let adapters = Adapters::new(
            &device,
            kernels.clone(),
            weights.clone(),
            arena.address() + arena.bytes(),
            adapter_bytes,
            config.max_slots,
        )?;
        let draw_memory = (0..DEPTH).map(|_| DrawMemory::new(&device, max_rows));
        let draw_memory = draw_memory.collect::<Result<_, _>>()?;
        Ok(Self {
            adapters,
            plan_memory: PlanMemory::new(&device, max_rows, num_blocks, DEPTH)?,
            plan: StepPlan::default(),
            capacity: Capacity {
                num_blocks,
                block_bytes: page,
                least_blocks,
                block_size: BLOCK_TOKENS,
                adapter_bytes,
                max_slots: config.max_slots,
                max_rows,
                pipeline_depth: DEPTH as u32,
            },
            buckets: row_buckets(max_rows),
            head_buckets: row_buckets(LOGIT_ROWS.min(max_rows)),
            limits,
            device,
            stream,
            kernels,
            weights,
            gemm,
            buffers,
            arena,
            mover,
            pinned,
            graphs: HashMap::new(),
            recordings: 0,
            replays: 0,
            pending: VecDeque::new(),
            draw_memory,
            submitted: 0,
            previous: Vec::new(),
            start: StartTimes::default(),
        })
    }

    /// Bounds steps by the number of rows that is best on this device.
    fn measure_rows(&mut self) -> Result<(), CudaError> {
        let rows = budget::best_rows(&self.time_products()?);
        tracing::info!(rows, "steps have this many rows at most");
        self.limits.max_rows = rows;
        self.capacity.max_rows = rows;
        Ok(())
    }
}

/// Device, stream and kernels for models of a head size.
fn open(config: &CudaConfig, head_dim: u32) -> Result<(Arc<Device>, Stream, Kernels), CudaError> {
    let device = Device::open(config.ordinal)?;
    let stream = device.stream()?;
    let CudaConfig { precision, kv_precision, .. } = *config;
    let target = Target { head_dim, precision, kv_precision };
    let kernels =
        Kernels::load(&device, target, config.cache.clone(), config.kernel_sources.as_deref())?;
    Ok((device, stream, kernels))
}

/// Bytes of a block's keys and values, all layers.
fn kv_page_bytes(spec: &lorikeet_contract::BaseModelSpec, precision: Precision) -> u64 {
    let heads = u64::from(spec.num_layers) * 2 * u64::from(spec.num_kv_heads);
    let token = match precision {
        Precision::Bf16 => 2 * u64::from(spec.head_dim),
        // And a scale.
        Precision::Fp8 => u64::from(spec.head_dim) + 1,
    };
    heads * u64::from(BLOCK_TOKENS) * token
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn host_allocator(&self) -> Arc<dyn HostAllocator> {
        Arc::new(self.pinned.clone())
    }

    fn adapter_bytes(&self, header: &ArtifactHeader) -> u64 {
        // One that does not fit the model is refused when it is uploaded.
        ExtentLayout::new(header, &self.limits.spec).map_or(0, |layout| layout.bytes)
    }

    fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
    ) -> Result<(), BackendError> {
        let layout = ExtentLayout::new(&adapter.header, &self.limits.spec)?;
        self.adapters.begin_upload(slot, adapter, layout, &self.stream, &self.mover)
    }

    fn poll_uploads(&mut self, done: &mut Vec<UploadDone>) {
        self.adapters.poll(done);
    }

    fn evict(&mut self, slot: AdapterSlot) {
        self.adapters.evict(slot);
    }

    fn set_blocks(&mut self, blocks: u32, moves: &[BlockMove]) -> Result<(), BackendError> {
        let most = self.capacity.num_blocks;
        if blocks > most || moves.iter().any(|m| m.from.0.max(m.to.0) >= most) {
            return Err(BackendError::Device(format!("there are {most} blocks at most")));
        }
        let bytes = self.capacity.adapter_bytes_beside(blocks);
        self.adapters.set_bytes(bytes, &self.stream, &self.mover)?;
        let (first, page) = (self.arena.address(), self.capacity.block_bytes);
        let moved = self.mover.blocks(&self.stream, first, page, moves)?;
        // Submitted steps may still read and write what adapters gain.
        self.adapters.settle(moved);
        self.limits.num_blocks = blocks;
        Ok(())
    }

    fn submit(&mut self, batch: &StepBatch) -> Result<StepTicket, BackendError> {
        self.device.bind()?;
        let adapters = &self.adapters;
        let extent = |slot| adapters.address(slot);
        self.plan.build(batch, &self.limits, &self.previous, extent)?;
        if self.plan_memory.reserve(&self.stream, &self.plan, self.limits.max_rows)? {
            // They hold the plan's old addresses.
            self.graphs.clear();
        }
        let Some(memory) = self.draw_memory.pop() else {
            return Err(BackendError::Device(format!("{DEPTH} steps are under way already")));
        };
        let vocabulary = self.limits.spec.vocab_size;
        let pending = Pending::new(&self.device, batch, &self.plan, vocabulary, memory)?;
        self.plan_memory.upload(&self.stream, &self.kernels, &self.plan, self.submitted % DEPTH)?;
        self.submitted += 1;
        self.previous.clear();
        self.previous.extend(
            self.plan
                .logits
                .iter()
                .map(|logit| logit.sample.then(|| batch.sequences[logit.sequence].sequence)),
        );
        self.pending.push_back(pending);
        self.run(self.pending.len() - 1)?;
        Ok(StepTicket(batch.step))
    }

    fn collect(&mut self, ticket: StepTicket) -> Result<StepOutput, BackendError> {
        self.device.bind()?;
        match self.pending.pop_front() {
            Some(pending) if pending.step() == ticket.0 => {
                let (output, memory) = pending.collect()?;
                self.draw_memory.push(memory);
                Ok(output)
            }
            _ => Err(BackendError::Device(format!("step {} was not submitted", ticket.0))),
        }
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Steps under way write into memory that is about to be freed.
        if self.device.bind().is_ok() {
            let _ = self.stream.synchronize();
        }
    }
}
