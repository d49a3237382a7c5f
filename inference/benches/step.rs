//! What the engine itself costs per step: 256 sequences over 32 adapters, decoding on the
//! simulated device at no cost. Time is what its thread spends on a CPU, so that other programs
//! count for little. The simulated device's part of it is measured alone: what is left is scheduler,
//! KV cache, commit and events.
//!
//! `cargo bench --profile dev -p lorikeet-inference --bench step` uses what is built; without
//! `--profile dev` all is built anew, as for a release. With `LORIKEET_BENCH_STEPS=N` it only runs so
//! many steps: two runs under `valgrind --tool=callgrind` that differ in it alone give the
//! instructions of a step.

use criterion::{BenchmarkGroup, Criterion, SamplingMode, measurement::WallTime};
use lorikeet_compute::backend::batch::SequenceId;
use lorikeet_compute::backend::sim::{SimBackend, SimClock, SimConfig, SimCost};
use lorikeet_compute::backend::{
    AdapterSlot, Backend, Capacity, HostAdapter, HostData, Input, LogitsWanted, SampleRequest,
    SequenceStep, StepBatch,
};
use lorikeet_compute::sampling::{LogitRules, SamplingParams};
use lorikeet_contract::adapter::testing::{RandomAdapter, smollm2_135m};
use lorikeet_contract::adapter::{AdapterConfig, AdapterPlan, ArtifactHeader, Header, pack};
use lorikeet_contract::{AdapterDigest, BaseModelSpec, RequestId, TenantId};
use lorikeet_inference::adapters::loader::AdapterSource;
use lorikeet_inference::adapters::{AdapterKey, AdapterManifest, LocalStore, ResidencyConfig};
use lorikeet_inference::engine::{self, EngineConfig, EngineEvent, EngineHandle, EngineRequest};
use lorikeet_inference::kv::BlockId;
use lorikeet_inference::scheduler::SchedulerConfig;
use lorikeet_inference::share::TenantShare;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const SEQUENCES: usize = 256;
const ADAPTERS: u64 = 32;
const PROMPT: usize = 128;
const MAX_TOKENS: u32 = 6000;
/// Steps that one engine takes before its sequences end, its start aside.
const MAX_STEPS: u64 = MAX_TOKENS as u64 - 1000;

fn sim() -> SimConfig {
    let capacity = Capacity {
        num_blocks: 160_000,
        block_bytes: 0,
        least_blocks: 0,
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
        share: TenantShare::default(),
        key: None,
        adapter: Some(Arc::clone(adapter)),
        prompt,
        params: SamplingParams::default(),
        rules: LogitRules::default(),
        guide: None,
        max_tokens: MAX_TOKENS,
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        scores_prompt: false,
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

/// CPU time of a step, measured over at least so many.
fn engine_step(steps: u64) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let directory = tempfile::tempdir().expect("a directory for the adapters");
    let adapters: Vec<_> = (1..=ADAPTERS).map(|seed| adapter(directory.path(), seed)).collect();
    let config = EngineConfig {
        scheduler: SchedulerConfig {
            max_num_seqs: SEQUENCES,
            max_num_batched_tokens: 8192,
            ..SchedulerConfig::default()
        },
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
    let (started, first) = (cpu_time("lk-engine"), handle.stats().last_step.step);
    wait(&handle, |h| h.stats().last_step.step >= first + steps);
    let (ended, last) = (cpu_time("lk-engine"), handle.stats().last_step);
    assert_eq!(last.decode_rows as usize, SEQUENCES, "all still decode");
    drop(readers);
    runtime.block_on(handle.shutdown());
    assert!(matches!(thread.join(), Ok(Ok(()))), "the engine ended well");
    (ended - started).div_f64((last.step - first) as f64)
}

/// What this process's thread of a name has spent on a CPU.
fn cpu_time(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux has /proc");
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let threads = tasks.flatten().map(|task| task.path());
    let thread = threads
        .filter(|task| read(task.join("comm")).trim().starts_with(name))
        .min()
        .expect("the thread runs");
    let spent = read(thread.join("schedstat"));
    let nanoseconds = spent.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    Duration::from_nanos(nanoseconds)
}

/// CPU time of so many steps of the simulated device alone, with the engine's batch.
fn simulation_steps(steps: u64) -> Duration {
    let mut sim = SimBackend::new(sim());
    let slots: Vec<_> = (0..ADAPTERS as u32).map(|index| upload(&mut sim, index)).collect();
    sim.poll_uploads(&mut Vec::new());
    let blocks = |n: usize| (0..300).map(|b| BlockId((n * 300 + b) as u32)).collect();
    let mut batch = StepBatch::default();
    batch.sequences.extend((0..SEQUENCES).map(|n| SequenceStep {
        sequence: SequenceId(n as u64),
        input: Input::Tokens(vec![1]),
        position: 0,
        blocks: blocks(n),
        adapter: Some(slots[n % slots.len()]),
        sample: Some(SampleRequest::default()),
        logits: LogitsWanted::None,
    }));
    let started = cpu_time("step");
    for step in 0..steps {
        batch.step = step;
        batch.sequences.iter_mut().for_each(|s| s.position = (step % 4000) as u32);
        let ticket = sim.submit(&batch).expect("the batch is valid");
        sim.collect(ticket).expect("it was submitted");
    }
    cpu_time("step") - started
}

fn upload(sim: &mut SimBackend, index: u32) -> AdapterSlot {
    let slot = AdapterSlot { index, generation: 1 };
    let key = AdapterKey { tenant: TenantId::new(), digest: AdapterDigest([index as u8; 32]) };
    let header = ArtifactHeader {
        layout_version: 1,
        adapter_digest: key.digest,
        base_weights_digest: base().weights_digest,
        modules: Vec::new(),
    };
    let adapter = HostAdapter { key, header, data: HostData::File(Box::new(Vec::new())) };
    sim.begin_upload(slot, Arc::new(adapter)).expect("there is room");
    slot
}

fn measure(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.bench_function("engine on the simulated device", |bencher| {
        bencher.iter_custom(|steps| engine_step(steps.clamp(500, MAX_STEPS)) * steps as u32);
    });
    group.bench_function("simulated device alone", |bencher| bencher.iter_custom(simulation_steps));
}

fn main() {
    let only = std::env::var("LORIKEET_BENCH_STEPS").ok().and_then(|steps| steps.parse().ok());
    if let Some(steps) = only {
        engine_step(u64::min(steps, MAX_STEPS));
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group =
        criterion.benchmark_group(format!("{SEQUENCES} sequences, {ADAPTERS} adapters"));
    measure(&mut group);
    group.finish();
    criterion.final_summary();
}
