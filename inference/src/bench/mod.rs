//! Measures the engine in this process: a closed loop of equal requests, without HTTP and tokenizer. And
//! a [node](BenchNode) around an engine, to measure what that costs.

mod adapters;
mod client;
mod node;
mod report;
#[cfg(test)]
mod tests;

use crate::adapters::{AdapterManifest, ResidencyConfig, loader::AdapterSource};
use crate::engine::{self, EngineConfig, EngineHandle, EngineState};
use crate::scheduler::SchedulerConfig;
use crate::telemetry::Tier;
use adapters::{AdapterSet, RandomStore};
use anyhow::Context;
use client::{Client, Loader, request};
use futures::{StreamExt, TryStreamExt, stream};
use lorikeet_compute::backend::cpu::{self, CpuConfig};
use lorikeet_compute::backend::cuda::check::random_model;
use lorikeet_compute::backend::cuda::{CudaBackend, CudaConfig};
use lorikeet_compute::backend::sim::{SimBackend, SimConfig};
use lorikeet_compute::backend::{Backend, BackendError};
use lorikeet_compute::model::{
    LoadProgress, ModelConfig, ModelError, ModelWeights, Rope, load_weights,
};
use lorikeet_contract::{BaseModelSpec, Linear};
use report::Observed;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use lorikeet_metrics::cpu_seconds;
pub use node::{BenchNode, BenchNodeConfig};
pub use report::{BenchReport, LoadingReport, Percentiles, StartParts, StartReport};

#[derive(Debug, Clone)]
pub enum BenchDevice {
    Cpu(CpuConfig),
    Cuda(CudaConfig),
    Sim(SimConfig),
}

/// Where the model's weights come from.
#[derive(Debug, Clone)]
pub enum BenchWeights {
    /// Random, from the seed.
    Random,
    /// A model's directory or file, read as a node reads it.
    Files(PathBuf),
}

/// What runs. Prompts, adapters and, mostly, weights are random, from one seed.
#[derive(Debug, Clone)]
pub struct BenchConfig {
    pub device: BenchDevice,
    pub weights: BenchWeights,
    /// Of the model, also where it is read.
    pub spec: BaseModelSpec,
    pub scheduler: SchedulerConfig,
    /// Requests under way at any time.
    pub concurrency: usize,
    pub prompt_tokens: usize,
    pub output_tokens: u32,
    /// Each request takes the next of these many adapters; 0: the base model.
    pub adapters: u32,
    pub rank: u32,
    pub linears: Vec<Linear>,
    /// Other adapters that are brought to the device meanwhile.
    pub loading: Option<Loading>,
    /// Host memory for adapters.
    pub host_bytes: u64,
    pub seed: u64,
    pub warm_up: Duration,
    pub window: Duration,
    /// Of the disk cache, which the run leaves behind.
    pub directory: PathBuf,
}

/// Adapters that take turns: where not all of them fit, each is loaded anew in its turn.
#[derive(Debug, Clone, Copy)]
pub struct Loading {
    pub adapters: u32,
    pub rank: u32,
    /// Between two of them.
    pub pause: Duration,
    pub by: LoadingBy,
}

/// What asks for the adapters that take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadingBy {
    /// Two requests for one token each: one that finds the adapter away, one that finds it there.
    Request,
    /// A call that loads the adapter ahead of requests, so that the running rows have no others beside
    /// them.
    WarmUp,
}

/// What a measurement is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The weights are made and brought to the device.
    Starting,
    LoadingAdapters,
    /// The warm-up, then the window.
    Measuring,
}

/// Measures one configuration. `at` hears what is being done.
pub async fn run(config: BenchConfig, at: impl Fn(Phase)) -> anyhow::Result<BenchReport> {
    let config = Arc::new(config);
    let started = Instant::now();
    at(Phase::Starting);
    let mut store = RandomStore::default();
    let set = AdapterSet { count: config.adapters, rank: config.rank, linears: &config.linears };
    let adapters = store.add(&config.spec, set);
    let others = config.loading.map(|Loading { adapters, rank, .. }| {
        store.add(&config.spec, AdapterSet { count: adapters, rank, linears: &config.linears })
    });
    let parts = Arc::new(OnceLock::new());
    let (engine, thread) = spawn(&config, Arc::new(store), parts.clone())?;
    let mut stats = engine.watch();
    stats.wait_for(|s| s.state != EngineState::Starting).await?;
    if let EngineState::Stopped(reason) = engine.stats().state {
        anyhow::bail!("the engine does not start: {reason}");
    }
    let running = started.elapsed().as_secs_f64();
    request(&engine, &brief(&config), None, u64::MAX - 1).await?;
    let first_token = started.elapsed().as_secs_f64();
    let most_of_device = engine.stats().capacity.max_rows as usize;
    at(Phase::LoadingAdapters);
    // Those that stay come last.
    load(&config, &engine, others.as_deref().unwrap_or_default()).await?;
    load(&config, &engine, &adapters).await?;
    let start = StartReport {
        parts: parts.get().copied().unwrap_or_default(),
        running,
        first_token,
        adapters: started.elapsed().as_secs_f64(),
    };

    at(Phase::Measuring);
    let begin = Instant::now() + config.warm_up;
    let end = begin + config.window;
    let next = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..config.concurrency)
        .map(|_| {
            let client = Client {
                engine: engine.clone(),
                config: config.clone(),
                adapters: adapters.clone(),
                next: next.clone(),
                end,
            };
            tokio::spawn(client.run())
        })
        .collect();
    let loader = config.loading.zip(others).map(|(loading, adapters)| {
        let engine = engine.clone();
        let loader = Loader { engine, config: (*config).clone(), adapters, loading, end };
        tokio::spawn(loader.run())
    });
    let own = std::process::id();
    let swaps = || engine.metrics().into_tier(Tier::Device).succeeded.get();
    tokio::time::sleep_until(begin.into()).await;
    let (cpu_at_begin, swaps_at_begin) = (cpu_seconds(own), swaps());
    tokio::time::sleep_until(end.into()).await;
    let cpu = cpu_seconds(own).zip(cpu_at_begin);
    let swaps = swaps() - swaps_at_begin;
    let mut timelines = Vec::new();
    for client in clients {
        timelines.extend(client.await??);
    }
    let loaded = match loader {
        Some(loader) => Some(loader.await??),
        None => None,
    };
    engine.shutdown().await;
    // The device's memory is free when the thread has ended, not before.
    tokio::task::spawn_blocking(|| thread.join()).await?.ok().context("the engine panicked")??;
    let observed = Observed {
        timelines: &timelines,
        window: begin..end,
        concurrency: config.concurrency,
        output_tokens: config.output_tokens,
        start,
        max_rows: config.scheduler.max_num_batched_tokens.min(most_of_device),
        cpu_seconds: cpu.map(|(end, begin)| end - begin),
        swaps,
        loaded,
    };
    Ok(observed.report())
}

/// Adapters that are brought to the device at once ahead of a measurement.
const LOADS: usize = 4;

/// Brings every adapter to the device, a few at once.
async fn load(
    config: &BenchConfig,
    engine: &EngineHandle,
    adapters: &[Arc<AdapterManifest>],
) -> anyhow::Result<()> {
    let brief = brief(config);
    let loads = adapters.iter().map(|adapter| {
        let adapter = Some(adapter.clone());
        async { request(engine, &brief, adapter, u64::MAX - 1).await.map(|_| ()) }
    });
    stream::iter(loads).buffer_unordered(LOADS).try_collect().await
}

/// The same with the shortest requests that there are.
fn brief(config: &BenchConfig) -> BenchConfig {
    BenchConfig { prompt_tokens: 1, output_tokens: 1, ..config.clone() }
}

type EngineThread = std::thread::JoinHandle<Result<(), engine::EngineError>>;

fn spawn(
    config: &BenchConfig,
    store: Arc<RandomStore>,
    parts: Arc<OnceLock<StartParts>>,
) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let engine_config = EngineConfig {
        scheduler: config.scheduler,
        residency: ResidencyConfig {
            host_bytes: config.host_bytes,
            disk_bytes: 64 << 30,
            ..ResidencyConfig::default()
        },
        // One tenant does not get the whole queue.
        max_requests: 2 * (config.concurrency + LOADS),
        base: config.spec.clone(),
        eos_tokens: Vec::new(),
    };
    let mut device = config.device.clone();
    if let BenchDevice::Cuda(cuda) = &mut device {
        cuda.pinned_bytes = store.bytes().min(config.host_bytes);
    }
    let source = AdapterSource {
        store,
        directory: config.directory.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let model = Model {
        config: ModelConfig {
            rope: Rope::plain(500_000.0),
            ..ModelConfig::plain(config.spec.clone())
        },
        weights: config.weights.clone(),
        seed: config.seed,
    };
    Ok(engine::spawn(engine_config, source, move || {
        let (backend, took) = backend(device, model)?;
        // Nobody else sets it.
        let _ = parts.set(took);
        Ok(backend)
    })?)
}

struct Model {
    config: ModelConfig,
    weights: BenchWeights,
    seed: u64,
}

impl Model {
    fn read(path: &Path) -> Result<ModelWeights, BackendError> {
        let failed = |e: ModelError| BackendError::Device(e.to_string());
        load_weights(path, None, &LoadProgress::default()).map_err(failed)
    }
}

fn backend(
    device: BenchDevice,
    Model { config: model, weights, seed }: Model,
) -> Result<(Box<dyn Backend>, StartParts), BackendError> {
    let began = Instant::now();
    let weights = match weights {
        BenchWeights::Files(path) => Some(Model::read(&path)?),
        BenchWeights::Random => None,
    };
    let read = weights.is_some().then(|| began.elapsed().as_secs_f64());
    let mut device_times = None;
    let backend: Box<dyn Backend> = match device {
        BenchDevice::Cuda(config) => {
            let cuda = match &weights {
                Some(weights) => CudaBackend::new(weights, config)?,
                None => CudaBackend::dummy(&model, seed, config)?,
            };
            device_times = Some(cuda.start_times());
            Box::new(cuda)
        }
        BenchDevice::Cpu(config) => {
            let weights = weights.unwrap_or_else(|| random_model(model.spec));
            cpu::backend(&weights, config)?
        }
        BenchDevice::Sim(config) => {
            let vocab_size = model.spec.vocab_size;
            Box::new(SimBackend::new(SimConfig { vocab_size, ..config }))
        }
    };
    Ok((backend, StartParts { read, device: device_times }))
}
