//! What a step takes on random weights, and how much less it takes without each kind of kernel. So
//! cublasLt's kernels are measured as ours are: in their place, with the caches and the clocks of a
//! running step.

use super::{AdapterShape, CheckError, random_adapter};
use crate::backend::batch::SequenceId;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::forward::Part;
use crate::backend::cuda::graph::Graph;
use crate::backend::cuda::kernels::{KernelId, Kernels};
use crate::backend::cuda::layout::Group;
use crate::backend::cuda::{CudaConfig, CudaError};
use crate::backend::{
    AdapterSlot, Backend, BlockId, Input, LogitsWanted, SampleRequest, SequenceStep, StepBatch,
};
use crate::model::ModelConfig;
use crate::sampling::SamplingParams;
use lorikeet_contract::Linear;
use lorikeet_contract::adapter::Dtype;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of a prompt; a step's share of longer ones is cut into prompts of this length.
const PROMPT: u32 = 512;
/// Each graph is replayed for so long; the first one, before anything is measured, for [`WARM_UP`].
const MEASURED: Duration = Duration::from_millis(250);
const WARM_UP: Duration = Duration::from_millis(1500);

/// What may be left out, and its name. Kernels that a step has not are skipped.
const PARTS: [(&str, Part); 16] = [
    ("embed", Part::Kernel(KernelId::Embed)),
    ("rms_norm", Part::Kernel(KernelId::RmsNorm)),
    ("lora_shrink", Part::Kernel(KernelId::LoraShrink)),
    ("product q,k,v", Part::Products(Group::Qkv)),
    ("rope_kv", Part::Kernel(KernelId::RopeKv)),
    ("attention", Part::Kernel(KernelId::Attention)),
    ("attention_decode", Part::Kernel(KernelId::AttentionDecode)),
    ("quantise", Part::Kernel(KernelId::Quantise)),
    ("product o", Part::Products(Group::Output)),
    ("residual", Part::Kernel(KernelId::Residual)),
    ("product gate,up", Part::Products(Group::GateUp)),
    ("silu_mul", Part::Kernel(KernelId::SiluMul)),
    ("product down", Part::Products(Group::Down)),
    ("gather", Part::Kernel(KernelId::Gather)),
    ("output layer", Part::OutputLayer),
    ("sample", Part::Kernel(KernelId::Sample)),
];

/// Rows of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StepRows {
    /// Requests that decode, one row each.
    pub decode: u32,
    /// Of prompts, from their first token on.
    pub prompts: u32,
}

/// Which steps are measured.
#[derive(Debug, Clone)]
pub struct StepsConfig {
    pub cuda: CudaConfig,
    pub model: ModelConfig,
    pub steps: Vec<StepRows>,
    /// Tokens that a request which decodes has, the step's own included.
    pub context: u32,
    /// Requests take them in turn; 0: none.
    pub adapters: u32,
    pub rank: u32,
    /// Measured beside the kernels that are built in.
    pub kernel_sources: Vec<PathBuf>,
    /// Leave out one part after the other.
    pub parts: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct StepTime {
    pub rows: StepRows,
    /// Of the kernels; None: those built in.
    pub kernel_sources: Option<PathBuf>,
    pub microseconds: f64,
    pub launches: usize,
    pub parts: Vec<PartTime>,
}

/// What a step takes less without a part.
#[derive(Debug, Clone, Serialize)]
pub struct PartTime {
    pub part: &'static str,
    pub microseconds: f64,
    pub launches: usize,
}

/// Measures each step, in each variant of the kernels.
pub fn time_steps(
    config: &StepsConfig,
    report: &mut dyn FnMut(StepTime),
) -> Result<(), CheckError> {
    let most = config.steps.iter().map(|s| s.decode + s.prompts).max().unwrap_or(1);
    let cuda = CudaConfig { max_rows: Some(most), ..config.cuda.clone() };
    let mut bench = Bench { backend: CudaBackend::dummy(&config.model, 1, cuda)?, is_warm: false };
    let mut variants = vec![(None, bench.backend.kernels.clone())];
    for folder in &config.kernel_sources {
        let target = bench.backend.kernels.target();
        let cache = config.cuda.cache.clone();
        let kernels = Kernels::load(&bench.backend.device, target, cache, Some(folder))?;
        variants.push((Some(folder.clone()), Arc::new(kernels)));
    }
    bench.upload(config)?;
    for &rows in &config.steps {
        bench.plan(&batch(config, rows))?;
        for (folder, kernels) in &variants {
            bench.backend.kernels = kernels.clone();
            let mut time = bench.time(rows, config.parts)?;
            time.kernel_sources = folder.clone();
            report(time);
        }
    }
    Ok(())
}

struct Bench {
    backend: CudaBackend,
    is_warm: bool,
}

impl Bench {
    /// One adapter's bytes in as many extents as there are adapters.
    fn upload(&mut self, config: &StepsConfig) -> Result<(), CheckError> {
        if config.adapters == 0 {
            return Ok(());
        }
        let linears = Linear::ALL.to_vec();
        let shape = AdapterShape { rank: config.rank, linears, dora: false, dtype: Dtype::BF16 };
        let adapter = random_adapter(&config.model.spec, &shape, 1);
        let adapter = Arc::new(self.backend.host_allocator().prepare(adapter)?);
        let mut done = Vec::new();
        for index in 0..config.adapters {
            self.backend.begin_upload(AdapterSlot { index, generation: 1 }, adapter.clone())?;
            // One at a time: how many may be queued is bounded.
            while done.len() <= index as usize {
                self.backend.poll_uploads(&mut done);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(done.into_iter().try_for_each(|d| d.result)?)
    }

    fn plan(&mut self, batch: &StepBatch) -> Result<(), CheckError> {
        let b = &mut self.backend;
        let extent = |slot| b.adapters.address(slot);
        b.plan.build(batch, &b.limits, &[], extent)?;
        b.plan_memory.reserve(&b.stream, &b.plan, b.limits.max_rows)?;
        b.plan_memory.upload(&b.stream, &b.kernels, &b.plan, 0)?;
        Ok(b.stream.synchronize()?)
    }

    fn time(&mut self, rows: StepRows, parts: bool) -> Result<StepTime, CheckError> {
        let key = self.backend.key();
        let whole = self.backend.record(key, None)?;
        if !self.is_warm {
            self.replay(&whole, WARM_UP)?;
            self.is_warm = true;
        }
        let first = self.replay(&whole, MEASURED)?;
        let mut time = StepTime {
            rows,
            kernel_sources: None,
            microseconds: first,
            launches: whole.launches(),
            parts: Vec::new(),
        };
        if !parts {
            return Ok(time);
        }
        for (part, left_out) in PARTS {
            let graph = self.backend.record(key, Some(left_out))?;
            let launches = whole.launches() - graph.launches();
            if launches > 0 {
                let microseconds = self.replay(&graph, MEASURED)?;
                time.parts.push(PartTime { part, microseconds, launches });
            }
        }
        // Clocks drift while the parts are measured.
        time.microseconds = (first + self.replay(&whole, MEASURED)?) / 2.0;
        for part in &mut time.parts {
            part.microseconds = time.microseconds - part.microseconds;
        }
        Ok(time)
    }

    /// Microseconds of a replay, the mean over about `length`.
    fn replay(&self, graph: &Graph, length: Duration) -> Result<f64, CudaError> {
        let b = &self.backend;
        let run = |count: u32| {
            let (start, end) = (b.device.event(true)?, b.device.event(true)?);
            b.stream.record(&start)?;
            for _ in 0..count {
                graph.launch(&b.stream)?;
            }
            b.stream.record(&end)?;
            end.synchronize()?;
            Ok::<_, CudaError>(f64::from(end.milliseconds_since(&start)?) * 1e3 / f64::from(count))
        };
        run(1)?;
        let once = Instant::now();
        run(1)?;
        let count = length.as_secs_f64() / once.elapsed().as_secs_f64();
        run(count.ceil().clamp(1.0, 10_000.0) as u32)
    }
}

fn batch(config: &StepsConfig, rows: StepRows) -> StepBatch {
    let prompts = (0..rows.prompts).step_by(PROMPT as usize);
    let decode = (0..rows.decode).map(|_| (config.context.max(1) - 1, 1));
    let prompts = prompts.map(|first| (0, PROMPT.min(rows.prompts - first)));
    let vocabulary = config.model.spec.vocab_size;
    let mut next_block = 0;
    let sequence = |(index, (position, rows)): (u32, (u32, u32))| {
        let blocks = (position + rows).div_ceil(16);
        next_block += blocks;
        SequenceStep {
            sequence: SequenceId(index.into()),
            input: Input::Tokens((0..rows).map(|t| (t * 7919 + index) % vocabulary).collect()),
            position,
            blocks: (next_block - blocks..next_block).map(BlockId).collect(),
            adapter: (config.adapters > 0)
                .then(|| AdapterSlot { index: index % config.adapters, generation: 1 }),
            sample: Some(SampleRequest {
                params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
                ..SampleRequest::default()
            }),
            logits: LogitsWanted::None,
        }
    };
    StepBatch { step: 1, sequences: (0..).zip(decode.chain(prompts)).map(sequence).collect() }
}
