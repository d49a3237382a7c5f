//! In the steady state a step of the engine on the CPU allocates nothing.

use super::harness::{Setup, adapter, request};
use crate::adapters::AdapterKey;
use crate::adapters::loader::{AdapterLoader, LoadEvent};
use crate::adapters::residency::LoadAction;
use crate::engine::{Engine, EngineConfig, EngineHandle, EngineStats};
use crate::telemetry::EngineMetrics;
use lorikeet_compute::backend::cpu::{self, CpuConfig};
use lorikeet_compute::backend::cuda::check::{AdapterShape, random_adapter, random_model};
use lorikeet_compute::backend::{HostAdapter, HostAllocator};
use lorikeet_contract::adapter::Dtype;
use lorikeet_contract::{BaseModelSpec, Linear, WeightsDigest};
use lorikeet_kit::allocations;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, watch};

#[global_allocator]
static COUNTING: allocations::Counting = allocations::Counting;

fn spec() -> BaseModelSpec {
    BaseModelSpec {
        id: "tiny".into(),
        weights_digest: WeightsDigest([0; 32]),
        architecture: "llama".into(),
        hidden_size: 64,
        intermediate_size: 128,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 128,
        context_length: 512,
    }
}

/// Makes adapters up, at once.
struct Made {
    memory: Arc<dyn HostAllocator>,
    events: Vec<LoadEvent>,
}

impl AdapterLoader for Made {
    fn start(&mut self, action: LoadAction) {
        self.events.push(match action {
            LoadAction::Fetch(m) => LoadEvent::Fetched { key: m.key, result: Ok(()) },
            LoadAction::Read(m) => {
                let (linears, dtype) = (Linear::ALL.to_vec(), Dtype::BF16);
                let shape = AdapterShape { rank: m.max_rank, linears, dora: false, dtype };
                let made = random_adapter(&spec(), &shape, m.key.digest.0[0].into());
                let adapter = self.memory.prepare(HostAdapter { key: m.key, ..made });
                LoadEvent::Read { key: m.key, result: Ok(adapter.expect("it fits")) }
            }
            LoadAction::DropFile(file) => LoadEvent::Dropped { key: file.key },
        });
    }

    fn cancel_fetch(&mut self, _: AdapterKey) {}

    fn poll(&mut self, events: &mut Vec<LoadEvent>) {
        events.append(&mut self.events);
    }
}

fn engine() -> (Engine, EngineHandle) {
    // One thread, which is this one: the others would run the same code uncounted.
    let config = CpuConfig { threads: 1, kv_tokens: 16 << 10, ..CpuConfig::default() };
    let backend = cpu::backend(&random_model(spec()), config).expect("a backend");
    let loader = Made { memory: backend.host_allocator(), events: Vec::new() };
    let config = EngineConfig { base: spec(), ..Setup::default().config() };
    let (sender, commands) = mpsc::channel(100);
    let (stats, watch) = watch::channel(EngineStats::default());
    let metrics = Arc::new(EngineMetrics::default());
    let thread = std::thread::current();
    let handle = EngineHandle::new(sender, config.max_requests, watch, metrics.clone(), thread);
    (Engine::new(config, backend, Box::new(loader), commands, stats, metrics), handle)
}

/// Long enough that what grows with a sequence has its size, and short enough that it keeps it.
const SETTLED: std::ops::Range<usize> = 110..220;

#[test]
fn a_step_that_fills_no_block_allocates_nothing() {
    let (mut engine, handle) = engine();
    let adapters = [1, 2, 3].map(|id| adapter(1, id, 100));
    let prompt: Vec<u32> = (1..=32).collect();
    let mut readers: Vec<_> = (0..8)
        .map(|place| {
            let (request, reader) = request(place % 3, adapters.get(place as usize), &prompt, 400);
            handle.try_submit(request).expect("there is room");
            reader
        })
        .collect();
    let block = engine.backend.capacity().block_size as usize;
    let mut counted = 0;
    for step in 0..SETTLED.end {
        // A block that has been filled is made known to the prefix cache, which keeps its tokens.
        let fills = readers.iter().any(|reader| {
            let tokens = prompt.len() + reader.tokens.len();
            (tokens + 1) % block <= 2
        });
        let before = allocations::count();
        engine.step(Instant::now()).expect("a step");
        let allocated = allocations::count() - before;
        readers.iter_mut().for_each(|reader| reader.read());
        if step == 0 {
            assert!(allocated > 0, "the count does not work");
        }
        if SETTLED.contains(&step) && !fills {
            assert_eq!(allocated, 0, "step {step}");
            counted += 1;
        }
    }
    assert!(readers.iter().all(|reader| reader.end.is_none() && reader.tokens.len() > 200));
    assert!(counted > SETTLED.len() / 2, "{counted} steps");
}
