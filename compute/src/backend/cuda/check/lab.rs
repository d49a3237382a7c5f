//! A device with the kernels for one head size, random inputs, and a stopwatch.

use super::{Outcome, Time};
use crate::backend::BlockId;
use crate::backend::batch::SequenceId;
use crate::backend::cuda::device::{Device, DeviceMemory, DevicePointer, Event, Stream};
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::graph::Graph;
use crate::backend::cuda::kernels::{Fill, Kernels, Start};
use crate::backend::cuda::plan::{Limits, StepPlan};
use crate::backend::cuda::workspace::{Buffers, PlanMemory};
use crate::backend::cuda::{CudaConfig, open};
use crate::backend::{AdapterSlot, BackendError, Input, LogitsWanted, SequenceStep, StepBatch};
use half::bf16;
use lorikeet_contract::BaseModelSpec;
use std::sync::Arc;

/// Bytes a second that the card reads at most, measured on an H100 80GB HBM3.
const BANDWIDTH: f64 = 3.09e12;
/// Larger than the L2 cache: read between two timed runs.
const FLUSH: u64 = 256 << 20;
const MAX_ROWS: u32 = 1024;
const NUM_BLOCKS: u32 = 1 << 14;

pub struct Lab {
    pub device: Arc<Device>,
    pub stream: Stream,
    pub kernels: Kernels,
    pub spec: BaseModelSpec,
    pub buffers: Buffers,
    pub limits: Limits,
    flush: DeviceMemory,
}

impl Lab {
    pub fn open(config: &CudaConfig, spec: BaseModelSpec) -> Result<Self, CudaError> {
        let (device, stream, kernels) = open(config, spec.head_dim)?;
        Ok(Self {
            buffers: Buffers::new(&device, &spec, MAX_ROWS)?,
            limits: Limits {
                spec: spec.clone(),
                max_rows: MAX_ROWS,
                num_blocks: NUM_BLOCKS,
                multiprocessors: kernels.multiprocessors(),
            },
            flush: device.allocate("device memory to flush the cache", FLUSH)?,
            device,
            stream,
            kernels,
            spec,
        })
    }

    /// Device memory that holds these values.
    pub fn memory<T: bytemuck::NoUninit>(&self, values: &[T]) -> Result<DeviceMemory, CudaError> {
        let memory = self.device.allocate("device memory", size_of_val(values) as u64)?;
        self.write(memory.address(), values)?;
        Ok(memory)
    }

    pub fn write<T: bytemuck::NoUninit>(
        &self,
        to: DevicePointer,
        values: &[T],
    ) -> Result<(), CudaError> {
        // SAFETY: the lab's buffers hold what the checks write, one check at a time.
        unsafe { self.stream.upload(to, values) }?;
        self.stream.synchronize()
    }

    pub fn read<T: bytemuck::Pod>(
        &self,
        from: DevicePointer,
        count: usize,
    ) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); count];
        // SAFETY: as above; waited for before `values` is read.
        unsafe { self.stream.download(&mut values, from) }?;
        self.stream.synchronize()?;
        Ok(values)
    }

    /// A plan on the device for these sequences; slot i's adapter lies at `extents[i]`.
    pub fn plan(
        &self,
        batch: &StepBatch,
        extents: &[DevicePointer],
    ) -> Result<(StepPlan, PlanMemory), BackendError> {
        let mut plan = StepPlan::default();
        let extent = |slot: AdapterSlot| Ok(extents[slot.index as usize]);
        plan.build(batch, &self.limits, &[], extent)?;
        let mut memory = PlanMemory::new(&self.device, MAX_ROWS, NUM_BLOCKS, 1)?;
        memory.reserve(&self.stream, &plan, MAX_ROWS)?;
        memory.upload(&self.stream, &self.kernels, &plan, 0)?;
        self.stream.synchronize()?;
        Ok((plan, memory))
    }

    /// Median of some runs with a cold L2 cache, less what a graph that does nothing takes. `bytes`
    /// must move at least once.
    pub fn time(
        &self,
        bytes: u64,
        launches: impl Fn() -> Result<(), CudaError>,
    ) -> Result<Time, CudaError> {
        let nothing = Fill { out: 0, count: 0, seed: 0, scale: 0.0 };
        // SAFETY: of no values, none is written.
        let idle = || unsafe { self.kernels.launch(&self.stream, Start::Afterwards, 1, &nothing) };
        let microseconds = (self.median(launches)? - self.median(idle)?).max(0.0);
        Ok(Time { microseconds, floor_microseconds: bytes as f64 / BANDWIDTH * 1e6 })
    }

    fn median(&self, launches: impl Fn() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        const RUNS: usize = 9;
        let graph = Graph::record(&self.device, &self.stream, &launches)?;
        let (start, end) = (self.device.event(true)?, self.device.event(true)?);
        let mut times = Vec::with_capacity(RUNS);
        for seed in 0..RUNS as u64 {
            let out = self.flush.address();
            let fill = Fill { out, count: FLUSH / 2, seed, scale: 1.0 };
            // SAFETY: the flush memory is used here alone.
            unsafe {
                self.kernels.launch(
                    &self.stream,
                    Start::Afterwards,
                    self.kernels.blocks(u32::MAX, 8),
                    &fill,
                )
            }?;
            self.stream.record(&start)?;
            graph.launch(&self.stream)?;
            self.stream.record(&end)?;
            Event::synchronize(&end)?;
            times.push(f64::from(end.milliseconds_since(&start)?) * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[RUNS / 2])
    }
}

/// One sequence: tokens before this step, tokens in it, and whose adapter.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub position: u32,
    pub rows: u32,
    pub adapter: Option<u32>,
}

/// A batch whose sequences have blocks of their own, from block `first_block` on, in falling order.
pub fn batch(parts: &[Part], vocabulary: u32) -> StepBatch {
    let mut next_block = NUM_BLOCKS;
    let sequence = |(index, part): (u64, &Part)| {
        let blocks = (part.position + part.rows).div_ceil(16);
        next_block -= blocks;
        SequenceStep {
            sequence: SequenceId(index),
            input: Input::Tokens((0..part.rows).map(|t| (t * 7919 + 13) % vocabulary).collect()),
            position: part.position,
            blocks: (next_block..next_block + blocks).rev().map(BlockId).collect(),
            adapter: part.adapter.map(|index| AdapterSlot { index, generation: 1 }),
            sample: None,
            logits: LogitsWanted::Last,
        }
    };
    StepBatch { step: 1, sequences: (0..).zip(parts).map(sequence).collect() }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): fast, seeded, good enough for inputs.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let v = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let v = (v ^ (v >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        v ^ (v >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// Uniform in `-scale..scale`.
    pub fn float(&mut self, scale: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
    }

    pub fn bf16s(&mut self, count: usize, scale: f32) -> Vec<bf16> {
        (0..count).map(|_| bf16::from_f32(self.float(scale))).collect()
    }

    /// The same as bytes, little-endian.
    pub fn bf16_bytes(&mut self, count: usize, scale: f32) -> Vec<u8> {
        self.bf16s(count, scale).iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    pub fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(scale)).collect()
    }
}

/// How far `out` is from `reference`, in the Euclidean norm, over its length.
pub fn relative_error(out: &[f32], reference: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    if out.len() != reference.len() || out.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let distance: f64 = out.iter().zip(reference).map(|(a, b)| square(a - b)).sum();
    let length: f64 = reference.iter().map(|&v| square(v)).sum();
    (distance / length.max(f64::MIN_POSITIVE)).sqrt()
}

pub fn to_f32(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

pub fn outcome(
    kernel: &'static str,
    case: String,
    error: f64,
    tolerance: f64,
    time: Option<Time>,
) -> Outcome {
    Outcome { kernel, case, error, tolerance, time }
}
