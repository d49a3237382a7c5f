//! Measures the engine in this process: a closed loop of equal requests, without HTTP and tokenizer.

use crate::adapters::{
    AdapterKey, AdapterManifest, ObjectError, ObjectStore, ResidencyConfig, loader::AdapterSource,
};
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::cuda::check::{AdapterShape, Random, random_adapter, random_model};
use crate::backend::cuda::{CudaBackend, CudaConfig};
use crate::backend::sim::{SimBackend, SimConfig};
use crate::backend::{Backend, BackendError};
use crate::engine::{self, EngineConfig, EngineEvent, EngineHandle, EngineRequest, EngineState};
use crate::model::{ModelConfig, Rope};
use crate::sampling::{LogitRules, SamplingParams};
use crate::scheduler::SchedulerConfig;
use crate::share::TenantShare;
use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use lorikeet_contract::adapter::{ArtifactHeader, Dtype, TensorRef};
use lorikeet_contract::digest::{CHUNK_BYTES, leaf};
use lorikeet_contract::{AdapterDigest, BaseModelSpec, ContentDigest, Linear, RequestId, TenantId};
use serde::Serialize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

#[derive(Debug, Clone)]
pub enum BenchDevice {
    Cpu(CpuConfig),
    Cuda(CudaConfig),
    Sim(SimConfig),
}

/// What runs. Weights are seeded and random.
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
    pub warm_up: Duration,
    pub window: Duration,
    /// Of the disk cache, which the run leaves behind.
    pub directory: PathBuf,
}

#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Requests that ended inside the window.
    pub requests: usize,
    /// Concurrency times output tokens over the mean time of a request.
    pub output_tokens_per_second: f64,
    /// Tokens that arrived inside the window, over its length.
    pub counted_tokens_per_second: f64,
    /// Milliseconds to the first token.
    pub ttft: Percentiles,
    /// Milliseconds for each further token, averaged over a request.
    pub tpot: Percentiles,
    /// Milliseconds between two tokens.
    pub itl: Percentiles,
    /// Seconds until the engine ran.
    pub start_seconds: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (values.len() as f64 * share) as usize;
            values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

pub async fn run(config: BenchConfig) -> anyhow::Result<BenchReport> {
    let started = Instant::now();
    let (store, adapters) = adapters(&config);
    let (engine, thread) = spawn(&config, store)?;
    let mut stats = engine.watch();
    stats.wait_for(|s| s.state != EngineState::Starting).await?;
    if let EngineState::Stopped(reason) = engine.stats().state {
        anyhow::bail!("the engine does not start: {reason}");
    }
    let start_seconds = started.elapsed().as_secs_f64();
    load(&config, &engine, &adapters).await?;

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
    let mut timelines = Vec::new();
    for client in clients {
        timelines.extend(client.await??);
    }
    engine.shutdown().await;
    // The device's memory is free when the thread has ended, not before.
    tokio::task::spawn_blocking(|| thread.join()).await?.ok().context("the engine panicked")??;
    Ok(report(&config, &timelines, begin..end, start_seconds))
}

fn report(
    config: &BenchConfig,
    timelines: &[Timeline],
    window: Range<Instant>,
    start_seconds: f64,
) -> BenchReport {
    let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
    let (mut ttft, mut tpot, mut itl, mut latency) = (vec![], vec![], vec![], vec![]);
    let mut tokens = 0;
    for timeline in timelines {
        let Some((first, last)) = timeline.tokens.first().zip(timeline.tokens.last()) else {
            continue;
        };
        tokens += timeline.tokens.iter().filter(|t| window.contains(*t)).count();
        if window.contains(first) {
            ttft.push(milliseconds(*first - timeline.submitted));
        }
        let within = timeline.tokens.windows(2).filter(|pair| window.contains(&pair[1]));
        itl.extend(within.map(|pair| milliseconds(pair[1] - pair[0])));
        if window.contains(last) && timeline.is_finished {
            latency.push(milliseconds(*last - timeline.submitted));
            let further = (timeline.tokens.len() - 1).max(1) as f64;
            tpot.push(milliseconds(*last - *first) / further);
        }
    }
    let mean = latency.iter().sum::<f64>() / latency.len() as f64;
    let together = config.concurrency as f64 * f64::from(config.output_tokens);
    BenchReport {
        requests: latency.len(),
        output_tokens_per_second: together / mean * 1e3,
        counted_tokens_per_second: tokens as f64 / (window.end - window.start).as_secs_f64(),
        ttft: Percentiles::of(ttft),
        tpot: Percentiles::of(tpot),
        itl: Percentiles::of(itl),
        start_seconds,
    }
}

/// When a request was handed over, and when its tokens came.
struct Timeline {
    submitted: Instant,
    tokens: Vec<Instant>,
    is_finished: bool,
}

/// One of the requests that are always under way.
struct Client {
    engine: EngineHandle,
    config: BenchConfig,
    adapters: Vec<Arc<AdapterManifest>>,
    next: Arc<AtomicU64>,
    end: Instant,
}

impl Client {
    async fn run(self) -> anyhow::Result<Vec<Timeline>> {
        let mut timelines = Vec::new();
        while Instant::now() < self.end {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let adapter = match self.adapters.len() {
                0 => None,
                count => Some(self.adapters[index as usize % count].clone()),
            };
            timelines.push(request(&self.engine, &self.config, adapter, index, self.end).await?);
        }
        Ok(timelines)
    }
}

/// Runs one request to its end, or to the end of the measurement.
async fn request(
    engine: &EngineHandle,
    config: &BenchConfig,
    adapter: Option<Arc<AdapterManifest>>,
    index: u64,
    end: Instant,
) -> anyhow::Result<Timeline> {
    let (sender, mut events) = mpsc::channel(config.output_tokens as usize + 2);
    let mut random = Random::new(index + 1);
    let vocabulary = u64::from(config.spec.vocab_size);
    let prompt = (0..config.prompt_tokens).map(|_| random.below(vocabulary) as u32).collect();
    let request = EngineRequest {
        id: RequestId::from_uuid(uuid::Uuid::now_v7()),
        tenant: TenantId::from_uuid(uuid::Uuid::nil()),
        share: TenantShare::default(),
        key: None,
        adapter,
        prompt,
        params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        rules: LogitRules::default(),
        max_tokens: config.output_tokens,
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        deadline: None,
        events: sender,
    };
    let submitted = Instant::now();
    let capacity = config.output_tokens as usize;
    let mut timeline =
        Timeline { submitted, tokens: Vec::with_capacity(capacity), is_finished: false };
    engine.try_submit(request).context("the engine took no request")?;
    while let Some(event) = events.recv().await {
        let now = Instant::now();
        match event {
            EngineEvent::Token(_) => timeline.tokens.push(now),
            EngineEvent::Finished { .. } => timeline.is_finished = true,
            EngineEvent::Failed { error, .. } => anyhow::bail!("a request failed: {error}"),
            EngineEvent::Started { .. } => {}
        }
        if now >= end {
            break;
        }
    }
    Ok(timeline)
}

/// Brings every adapter to the device, one after the other.
async fn load(
    config: &BenchConfig,
    engine: &EngineHandle,
    adapters: &[Arc<AdapterManifest>],
) -> anyhow::Result<()> {
    let brief = BenchConfig { prompt_tokens: 1, output_tokens: 1, ..config.clone() };
    let never = Instant::now() + Duration::from_secs(3600);
    for adapter in adapters {
        request(engine, &brief, Some(adapter.clone()), u64::MAX - 1, never).await?;
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
            host_bytes: 64 << 30,
            disk_bytes: 64 << 30,
            ..ResidencyConfig::default()
        },
        max_requests: config.concurrency + 1,
        base: config.spec.clone(),
        eos_tokens: Vec::new(),
    };
    let source = AdapterSource {
        store,
        directory: config.directory.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let (device, spec) = (config.device.clone(), config.spec.clone());
    Ok(engine::spawn(engine_config, source, move || backend(device, spec))?)
}

fn backend(device: BenchDevice, spec: BaseModelSpec) -> Result<Box<dyn Backend>, BackendError> {
    const SEED: u64 = 1;
    let model = ModelConfig { rope: Rope::plain(500_000.0), ..ModelConfig::plain(spec) };
    match device {
        BenchDevice::Cuda(config) => Ok(Box::new(CudaBackend::dummy(&model, SEED, config)?)),
        BenchDevice::Cpu(config) => {
            Ok(Box::new(CpuBackend::new(&random_model(model.spec), config)?))
        }
        BenchDevice::Sim(config) => {
            let vocab_size = model.spec.vocab_size;
            Ok(Box::new(SimBackend::new(SimConfig { vocab_size, ..config })))
        }
    }
}

/// Adapters that differ in their headers only; each is loaded and read by itself all the same.
struct RandomStore {
    headers: Vec<Bytes>,
    data: Bytes,
}

#[async_trait]
impl ObjectStore for RandomStore {
    async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let index = object.parse::<usize>().ok();
        let Some(header) = index.and_then(|index| self.headers.get(index)) else {
            return Err(ObjectError::Missing(object.into()));
        };
        Ok(piece(header, &self.data, range).into())
    }
}

/// Bytes of two slices that stand one after the other.
fn piece(header: &[u8], data: &[u8], range: Range<u64>) -> Vec<u8> {
    let split = header.len();
    let end = (range.end as usize).min(split + data.len());
    let start = (range.start as usize).min(end);
    let first = &header[start.min(split)..end.min(split)];
    let second = &data[start.saturating_sub(split)..end.saturating_sub(split)];
    [first, second].concat()
}

fn adapters(config: &BenchConfig) -> (Arc<RandomStore>, Vec<Arc<AdapterManifest>>) {
    let shape = AdapterShape {
        rank: config.rank,
        linears: config.linears.clone(),
        dora: false,
        dtype: Dtype::BF16,
    };
    let one = match config.adapters {
        0 => return (Arc::new(RandomStore { headers: vec![], data: Bytes::new() }), vec![]),
        _ => random_adapter(&config.spec, &shape, 1),
    };
    let data = Bytes::copy_from_slice(one.data.as_slice());
    let headers: Vec<(AdapterDigest, Bytes)> = (0..config.adapters)
        .map(|index| {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&index.to_le_bytes());
            let digest = AdapterDigest(digest);
            (digest, encode(ArtifactHeader { adapter_digest: digest, ..one.header.clone() }))
        })
        .collect();
    let tenant = TenantId::from_uuid(uuid::Uuid::nil());
    // Headers are of one length, so that all but the first leaf of the hash are common.
    let total = (headers[0].1.len() + data.len()) as u64;
    let chunk = |header: &[u8], index: u64| {
        let start = index * CHUNK_BYTES as u64;
        leaf(&piece(header, &data, start..start + CHUNK_BYTES as u64))
    };
    let later: Vec<[u8; 32]> =
        (1..total.div_ceil(CHUNK_BYTES as u64)).map(|index| chunk(&headers[0].1, index)).collect();
    let manifests = (0..)
        .zip(&headers)
        .map(|(index, (digest, header)): (u64, _)| {
            let leaves = std::iter::once(chunk(header, 0)).chain(later.iter().copied());
            Arc::new(AdapterManifest {
                key: AdapterKey { tenant, digest: *digest },
                object_key: index.to_string(),
                bytes: total,
                artifact_digest: ContentDigest::from_leaves(leaves, total).into(),
                max_rank: config.rank,
            })
        })
        .collect();
    let headers = headers.into_iter().map(|(_, header)| header).collect();
    (Arc::new(RandomStore { headers, data }), manifests)
}

/// Offsets count from the start of the file, and so depend on the header's own length.
fn encode(header: ArtifactHeader) -> Bytes {
    let mut start = 0;
    loop {
        let mut shifted = header.clone();
        let shift = |t: &mut TensorRef| t.offset += start;
        for module in &mut shifted.modules {
            shift(&mut module.a);
            shift(&mut module.b);
            module.magnitude.iter_mut().for_each(shift);
        }
        let encoded = shifted.encode();
        if encoded.len() as u64 == start {
            return encoded.into();
        }
        start = encoded.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::check::smollm2;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_loop_measures_an_engine_with_adapters() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = BenchConfig {
            device: BenchDevice::Sim(SimConfig::default()),
            spec: smollm2(2),
            scheduler: SchedulerConfig::default(),
            concurrency: 4,
            prompt_tokens: 16,
            output_tokens: 8,
            adapters: 3,
            rank: 4,
            linears: vec![Linear::QProj],
            warm_up: Duration::from_millis(20),
            window: Duration::from_millis(500),
            directory: directory.path().into(),
        };
        let report = run(config).await.expect("runs");
        assert!(report.requests > 0 && report.counted_tokens_per_second > 0.0, "{report:?}");
        assert!(report.itl.p50 <= report.itl.p99, "{report:?}");
    }
}
