//! An object store so slow that a load takes five seconds: whoever does not need the adapter does not
//! notice. In real time, through S3's protocol and a proxy that throttles. `LORIKEET_SLOW_STORE_CPU=1`
//! runs the same on the CPU and the real model, for a machine that has nothing else to do.

use super::harness::{request, tenant};
use crate::adapters::loader::AdapterSource;
use crate::adapters::{AdapterKey, AdapterManifest, ResidencyConfig, S3Config, S3Store};
use crate::engine::{EngineConfig, EngineEvent, EngineHandle, spawn};
use crate::fixture::{base_model, packed_adapter};
use crate::scheduler::SchedulerConfig;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use lorikeet_compute::backend::Backend;
use lorikeet_compute::backend::cpu::{self, CpuConfig};
use lorikeet_compute::backend::sim::{SimBackend, SimConfig, SimCost};
use lorikeet_contract::ContentDigest;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const LOAD: Duration = Duration::from_secs(5);
/// Of the simulated device: long beside what a busy machine does to timers.
const STEP: Duration = Duration::from_millis(20);
/// Streams of other tenants, all the time.
const STREAMS: u8 = 4;
/// Pairs of periods in which each side has the load once; one is enough where noise is small.
const MOST_PAIRS: usize = 6;
const LIMIT: f64 = 1.10;
/// Gaps between tokens from which a p99 means something.
const SAMPLE: usize = 500;

/// An object store with one object, whatever its name.
async fn object_store(object: Arc<Vec<u8>>) -> SocketAddr {
    let read = async move |headers: HeaderMap| {
        let range = headers[header::RANGE].to_str().unwrap().trim_start_matches("bytes=");
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let content_range = format!("bytes {first}-{last}/{}", object.len());
        let part = object[first..=last].to_vec();
        (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, content_range)], part)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/{*object}", get(read));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Passes on what the store answers at so many bytes a second.
async fn throttle(store: SocketAddr, bytes_per_second: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut asks, mut answers) = client.into_split();
                let (mut answered, mut asked) =
                    TcpStream::connect(store).await.unwrap().into_split();
                tokio::spawn(async move { tokio::io::copy(&mut asks, &mut asked).await });
                let mut chunk = vec![0; 16 << 10];
                while let Ok(bytes @ 1..) = answered.read(&mut chunk).await {
                    let due = Duration::from_secs(bytes as u64) / bytes_per_second as u32;
                    tokio::time::sleep(due).await;
                    if answers.write_all(&chunk[..bytes]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn start(root: &Path, store: SocketAddr) -> EngineHandle {
    let model = &base_model().weights;
    let store = S3Store::new(S3Config {
        endpoint: format!("http://{store}"),
        bucket: "bucket".into(),
        region: "local".into(),
        access_key: "access".into(),
        secret_key: "secret".into(),
    });
    let source = AdapterSource {
        store: Arc::new(store),
        directory: root.join("cache"),
        runtime: tokio::runtime::Handle::current(),
    };
    let config = EngineConfig {
        scheduler: SchedulerConfig::default(),
        residency: ResidencyConfig::default(),
        max_requests: 64,
        base: model.config.spec.clone(),
        eos_tokens: Vec::new(),
    };
    let on_cpu = std::env::var_os("LORIKEET_SLOW_STORE_CPU").is_some();
    let backend = move || -> Result<Box<dyn Backend>, _> {
        if on_cpu {
            return cpu::backend(model, CpuConfig::default());
        }
        let vocab_size = model.config.spec.vocab_size;
        let cost = SimCost { step: STEP, ..SimCost::FREE };
        Ok(Box::new(SimBackend::new(SimConfig { vocab_size, cost, ..SimConfig::default() })))
    };
    spawn(config, source, backend).unwrap().0
}

/// Streams one answer after the other and tells when each token came after the one before.
fn stream(handle: EngineHandle, of: u8, gaps: mpsc::Sender<Duration>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (mut request, _) = request(of, None, &[1, 2, 4, 5, 6, 7], 500);
            let (sender, mut events) = mpsc::channel(502);
            request.events = sender;
            if handle.try_submit(request).is_err() {
                return;
            }
            let mut last = None;
            while let Some(event) = events.recv().await {
                if !matches!(event, EngineEvent::Token(_)) {
                    continue;
                }
                let now = Instant::now();
                let before = last.replace(now);
                if before.is_some_and(|before| gaps.try_send(now - before).is_err()) {
                    return;
                }
            }
        }
    })
}

fn p99(gaps: &mut [Duration]) -> Duration {
    gaps.sort_unstable();
    gaps[gaps.len() * 99 / 100]
}

/// The slow adapter's request, from its submission to its end. Its load took what it should.
async fn load(handle: &EngineHandle, adapter: &Arc<AdapterManifest>) {
    let (mut request, _) = request(9, Some(adapter), &[1, 2, 4], 1);
    let (sender, mut events) = mpsc::channel(3);
    request.events = sender;
    handle.try_submit(request).unwrap();
    while let Some(event) = events.recv().await {
        match event {
            EngineEvent::Finished { usage, .. } => {
                assert!(usage.adapter_load > LOAD * 9 / 10, "{usage:?}");
            }
            EngineEvent::Failed { error, .. } => panic!("{error}"),
            EngineEvent::Started { .. } | EngineEvent::Prompt(_) | EngineEvent::Token(_) => {}
        }
    }
    // The next load starts from nothing.
    handle.forget(adapter.key).await;
    let mut stats = handle.watch();
    stats.wait_for(|stats| stats.residency.adapters.is_empty()).await.unwrap();
}

/// An engine with streams on it.
struct Side {
    handle: EngineHandle,
    gaps: mpsc::Receiver<Duration>,
    streams: Vec<JoinHandle<()>>,
    _cache: TempDir,
}

impl Side {
    async fn start(store: SocketAddr) -> Self {
        let cache = TempDir::new().unwrap();
        let handle = start(cache.path(), store);
        // More than come between two readings; a full one would end the streams and so the test.
        let (sender, mut gaps) = mpsc::channel(1 << 16);
        let streams = (0..STREAMS).map(|of| stream(handle.clone(), of, sender.clone())).collect();
        for _ in 0..100 {
            gaps.recv().await.unwrap();
        }
        Self { handle, gaps, streams, _cache: cache }
    }

    fn take(&mut self, into: &mut Vec<Duration>) {
        while let Ok(gap) = self.gaps.try_recv() {
            into.push(gap);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_takes_five_seconds_leaves_other_tenants_streams_as_they_are() {
    let (header, file) = packed_adapter("pirate").expect("the kit has it");
    let adapter = Arc::new(AdapterManifest {
        key: AdapterKey { tenant: tenant(9), digest: header.adapter_digest },
        object_key: "pirate.lka".into(),
        bytes: file.len() as u64,
        artifact_digest: ContentDigest::of(&file).into(),
        max_rank: header.max_rank(),
    });
    let rate = file.len() as u64 / LOAD.as_secs();
    let store = throttle(object_store(Arc::new(file)).await, rate).await;
    // Both go through whatever else the machine does at the same time, and take turns at the load.
    let (mut one, mut other) = (Side::start(store).await, Side::start(store).await);

    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut ratio = f64::INFINITY;
    for pair in 1..=MOST_PAIRS {
        for _ in 0..2 {
            one.take(&mut Vec::new());
            other.take(&mut Vec::new());
            load(&one.handle, &adapter).await;
            one.take(&mut with);
            other.take(&mut without);
            std::mem::swap(&mut one, &mut other);
        }
        let (alone, beside) = (p99(&mut without), p99(&mut with));
        ratio = beside.as_secs_f64() / alone.as_secs_f64();
        println!("pair {pair}: p99 {alone:?} alone, {beside:?} beside a load, ratio {ratio:.3}");
        if ratio <= LIMIT && with.len() > SAMPLE {
            break;
        }
    }
    assert!(with.len() > SAMPLE, "{} tokens are no sample", with.len());
    assert!(ratio <= LIMIT, "p99 beside a load is {ratio:.2} times what it is without");
    for side in [one, other] {
        side.streams.iter().for_each(JoinHandle::abort);
        side.handle.shutdown().await;
    }
}
