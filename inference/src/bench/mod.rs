//! Measures the engine in this process: a closed loop of equal requests, without HTTP and tokenizer.

mod adapters;
mod client;
mod report;
#[cfg(test)]
mod tests;

use crate::adapters::{AdapterManifest, ResidencyConfig, loader::AdapterSource};
use crate::engine::{self, EngineConfig, EngineHandle, EngineState};
use crate::scheduler::SchedulerConfig;
use adapters::{AdapterSet, RandomStore};
use anyhow::Context;
use client::{Client, Loader, request};
use lorikeet_compute::backend::cpu::{self, CpuConfig};
use lorikeet_compute::backend::cuda::check::random_model;
use lorikeet_compute::backend::cuda::{CudaBackend, CudaConfig};
use lorikeet_compute::backend::sim::{SimBackend, SimConfig};
use lorikeet_compute::backend::{Backend, BackendError};
use lorikeet_compute::model::{ModelConfig, Rope};
use lorikeet_contract::{BaseModelSpec, Linear};
use report::Observed;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

pub use lorikeet_metrics::cpu_seconds;
pub use report::{BenchReport, LoadingReport, Percentiles};

#[derive(Debug, Clone)]
pub enum BenchDevice {
    Cpu(CpuConfig),
    Cuda(CudaConfig),
    Sim(SimConfig),
}

/// What runs. Weights and prompts are random, from one seed.
#[derive(Debug, Clone)]
pub struct BenchConfig {
    pub device: BenchDevice,
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
    let (engine, thread) = spawn(&config, Arc::new(store))?;
    let mut stats = engine.watch();
    stats.wait_for(|s| s.state != EngineState::Starting).await?;
    if let EngineState::Stopped(reason) = engine.stats().state {
        anyhow::bail!("the engine does not start: {reason}");
    }
    let start_seconds = started.elapsed().as_secs_f64();
    let most_of_device = engine.stats().capacity.max_rows as usize;
    at(Phase::LoadingAdapters);
    // Those that stay come last.
    load(&config, &engine, others.as_deref().unwrap_or_default()).await?;
    load(&config, &engine, &adapters).await?;

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
    tokio::time::sleep_until(begin.into()).await;
    let cpu_at_begin = cpu_seconds(own);
    tokio::time::sleep_until(end.into()).await;
    let cpu = cpu_seconds(own).zip(cpu_at_begin);
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
        start_seconds,
        max_rows: config.scheduler.max_num_batched_tokens.min(most_of_device),
        cpu_seconds: cpu.map(|(end, begin)| end - begin),
        loaded,
    };
    Ok(observed.report())
}

/// Brings every adapter to the device, one after the other.
async fn load(
    config: &BenchConfig,
    engine: &EngineHandle,
    adapters: &[Arc<AdapterManifest>],
) -> anyhow::Result<()> {
    let brief = BenchConfig { prompt_tokens: 1, output_tokens: 1, ..config.clone() };
    for adapter in adapters {
        request(engine, &brief, Some(adapter.clone()), u64::MAX - 1).await?;
    }
    Ok(())
}

type EngineThread = std::thread::JoinHandle<Result<(), engine::EngineError>>;

fn spawn(
    config: &BenchConfig,
    store: Arc<RandomStore>,
) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let engine_config = EngineConfig {
        scheduler: config.scheduler,
        residency: ResidencyConfig {
            host_bytes: config.host_bytes,
            disk_bytes: 64 << 30,
            ..ResidencyConfig::default()
        },
        // One tenant does not get the whole queue.
        max_requests: 2 * config.concurrency + 2,
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
    let (spec, seed) = (config.spec.clone(), config.seed);
    Ok(engine::spawn(engine_config, source, move || backend(device, spec, seed))?)
}

fn backend(
    device: BenchDevice,
    spec: BaseModelSpec,
    seed: u64,
) -> Result<Box<dyn Backend>, BackendError> {
    let model = ModelConfig { rope: Rope::plain(500_000.0), ..ModelConfig::plain(spec) };
    match device {
        BenchDevice::Cuda(config) => Ok(Box::new(CudaBackend::dummy(&model, seed, config)?)),
        BenchDevice::Cpu(config) => cpu::backend(&random_model(model.spec), config),
        BenchDevice::Sim(config) => {
            let vocab_size = model.spec.vocab_size;
            Ok(Box::new(SimBackend::new(SimConfig { vocab_size, ..config })))
        }
    }
}
