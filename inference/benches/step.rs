//! What the engine itself costs per step: 256 sequences over 32 adapters, decoding on the
//! simulated device at no cost. Prints microseconds; the simulation's own share is measured alone.
//!
//! `cargo bench -p lorikeet-inference --bench step`

use lorikeet_contract::adapter::testing::{RandomAdapter, smollm2_135m};
use lorikeet_contract::adapter::{AdapterConfig, AdapterPlan, Header, pack};
use lorikeet_contract::{AdapterDigest, BaseModelSpec, RequestId, TenantId};
use lorikeet_inference::adapters::loader::AdapterSource;
use lorikeet_inference::adapters::{AdapterKey, AdapterManifest, LocalStore, ResidencyConfig};
use lorikeet_inference::backend::batch::SequenceId;
use lorikeet_inference::backend::sim::{SimBackend, SimClock, SimConfig, SimCost};
use lorikeet_inference::backend::{
    Backend, Capacity, Input, LogitsWanted, SampleRequest, SequenceStep, StepBatch,
};
use lorikeet_inference::engine::{self, EngineConfig, EngineEvent, EngineHandle, EngineRequest};
use lorikeet_inference::kv::BlockId;
use lorikeet_inference::sampling::SamplingParams;
use lorikeet_inference::scheduler::SchedulerConfig;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const SEQUENCES: usize = 256;
const ADAPTERS: u64 = 32;
const PROMPT: usize = 128;
const MAX_TOKENS: u32 = 6000;
const STEPS: u64 = 2000;

fn sim() -> SimConfig {
    let capacity = Capacity {
        num_blocks: 160_000,
        block_size: 16,
        adapter_bytes: 1 << 30,
        max_slots: 64,
        max_rows: 8192,
        pipeline_depth: 1,
    };
    let (cost, clock) = (SimCost::FREE, SimClock::simulated());
    SimConfig { capacity, cost, clock, ..SimConfig::default() }
}

fn base() -> BaseModelSpec {
    BaseModelSpec { num_layers: 1, hidden_size: 64, ..smollm2_135m() }
}

fn adapter(store: &Path, seed: u64) -> Arc<AdapterManifest> {
    let files = RandomAdapter { seed, ..RandomAdapter::default() }.files(&base());
    let config = AdapterConfig::parse(&files.config).expect("a made-up adapter is valid");
    let header = Header::parse(&files.weights, files.weights.len() as u64).expect("as above");
    let plan = AdapterPlan::new(&config, &header, &base()).expect("as above");
    let digest = AdapterDigest([seed as u8; 32]);
    let mut packed = Vec::new();
    let facts = pack(&plan, digest, &mut Cursor::new(files.weights), &mut packed)
        .expect("memory can be written");
    let object_key = format!("{seed}.lka");
    std::fs::write(store.join(&object_key), packed).expect("the directory can be written");
    Arc::new(AdapterManifest {
        key: AdapterKey { tenant: TenantId::new(), digest },
        object_key,
        bytes: facts.bytes,
        artifact_digest: facts.digest,
        max_rank: facts.header.max_rank(),
    })
}

fn submit(
    handle: &EngineHandle,
    adapter: &Arc<AdapterManifest>,
    n: usize,
) -> mpsc::Receiver<EngineEvent> {
    let (events, reader) = mpsc::channel(MAX_TOKENS as usize + 2);
    let prompt = (0..PROMPT).map(|i| (i * 31 + n) as u32 % 1000).collect();
    let request = EngineRequest {
        id: RequestId::new(),
        tenant: adapter.key.tenant,
        key: None,
        adapter: Some(Arc::clone(adapter)),
        prompt,
        params: SamplingParams::default(),
        max_tokens: MAX_TOKENS,
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        deadline: None,
        events,
    };
    handle.try_submit(request).expect("there is room for all");
    reader
}

fn wait(handle: &EngineHandle, until: impl Fn(&EngineHandle) -> bool) {
    while !until(handle) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn engine_us() -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let directory = tempfile::tempdir().expect("a directory for the adapters");
    let adapters: Vec<_> = (1..=ADAPTERS).map(|seed| adapter(directory.path(), seed)).collect();
    let config = EngineConfig {
        scheduler: SchedulerConfig { max_num_seqs: SEQUENCES, max_num_batched_tokens: 8192 },
        residency: ResidencyConfig::default(),
        max_requests: SEQUENCES,
        base: base(),
        eos_tokens: Vec::new(),
    };
    let source = AdapterSource {
        store: Arc::new(LocalStore::new(directory.path().into())),
        directory: directory.path().join("cache"),
        runtime: runtime.handle().clone(),
    };
    let (handle, thread) = engine::spawn(config, source, || Ok(Box::new(SimBackend::new(sim()))))
        .expect("a thread starts");
    let each = adapters.iter().cycle().take(SEQUENCES).enumerate();
    let readers: Vec<_> = each.map(|(n, adapter)| submit(&handle, adapter, n)).collect();
    wait(&handle, |h| h.stats().last_step.decode_rows as usize == SEQUENCES);
    let (started, first) = (Instant::now(), handle.stats().last_step.step);
    wait(&handle, |h| h.stats().last_step.step >= first + STEPS);
    let (elapsed, last) = (started.elapsed(), handle.stats().last_step);
    assert_eq!(last.decode_rows as usize, SEQUENCES, "all still decode");
    drop(readers);
    runtime.block_on(handle.shutdown());
    let ended = thread.join();
    assert!(matches!(ended, Ok(Ok(()))), "the engine ended well");
    elapsed.as_secs_f64() * 1e6 / (last.step - first) as f64
}

fn simulation_us() -> f64 {
    let mut sim = SimBackend::new(sim());
    let blocks = |n: usize| (0..300).map(|b| BlockId((n * 300 + b) as u32)).collect();
    let mut batch = StepBatch::default();
    batch.sequences.extend((0..SEQUENCES).map(|n| SequenceStep {
        sequence: SequenceId(n as u64),
        input: Input::Tokens(vec![1]),
        position: 0,
        blocks: blocks(n),
        adapter: None,
        sample: Some(SampleRequest {
            params: SamplingParams::default(),
            output_index: 0,
            logprobs: None,
        }),
        logits: LogitsWanted::None,
    }));
    let started = Instant::now();
    for step in 0..STEPS {
        batch.step = step;
        batch.sequences.iter_mut().for_each(|s| s.position = step as u32);
        let ticket = sim.submit(&batch).expect("the batch is valid");
        sim.collect(ticket).expect("it was submitted");
    }
    started.elapsed().as_secs_f64() * 1e6 / STEPS as f64
}

fn main() {
    let (engine, simulation) = (engine_us(), simulation_us());
    println!("a step of {SEQUENCES} sequences over {ADAPTERS} adapters: {engine:.1} us");
    println!("of which the simulated device: {simulation:.1} us");
    println!("engine: {:.1} us", engine - simulation);
}
