//! An engine on a simulated device in simulated time, stepped by hand and checked after each step.

use super::loader::{LoaderScript, ScriptedLoader};
use crate::adapters::{AdapterKey, AdapterManifest, ResidencyConfig};
use crate::engine::{Engine, EngineConfig, EngineHandle, EngineRequest, EngineStats, SubmitError};
use crate::scheduler::SchedulerConfig;
use crate::telemetry::EngineMetrics;
use lorikeet_compute::backend::Capacity;
use lorikeet_compute::backend::sim::{SimBackend, SimClock, SimConfig, SimCost};
use lorikeet_contract::{
    AdapterDigest, ArtifactDigest, BaseModelSpec, KeyId, TenantId, WeightsDigest,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

pub use super::reader::{End, Reader, request};

pub const EOS: u32 = 3;

pub fn tenant(id: u8) -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(id.into()))
}

pub fn key_id(id: u8) -> KeyId {
    KeyId::from_uuid(Uuid::from_u128(id.into()))
}

/// Adapter `id` of a tenant.
pub fn adapter(tenant_id: u8, id: u8, bytes: u64) -> Arc<AdapterManifest> {
    Arc::new(AdapterManifest {
        key: AdapterKey { tenant: tenant(tenant_id), digest: AdapterDigest([id; 32]) },
        object_key: format!("adapter-{id}"),
        bytes,
        artifact_digest: ArtifactDigest([id; 32]),
        max_rank: 8,
    })
}

#[derive(Clone)]
pub struct Setup {
    pub scheduler: SchedulerConfig,
    pub residency: ResidencyConfig,
    pub capacity: Capacity,
    pub cost: SimCost,
    pub loader: LoaderScript,
    pub max_requests: usize,
    pub context_length: u32,
    pub sim: SimConfig,
}

impl Default for Setup {
    /// Room for everything, in blocks of four tokens.
    fn default() -> Self {
        Self {
            scheduler: SchedulerConfig::default(),
            residency: ResidencyConfig {
                host_bytes: 1000,
                disk_bytes: 1000,
                quantum: Duration::from_millis(20),
                ..ResidencyConfig::default()
            },
            capacity: Capacity {
                num_blocks: 1000,
                block_bytes: 0,
                least_blocks: 0,
                block_size: 4,
                adapter_bytes: 1000,
                max_slots: 8,
                max_rows: 512,
                pipeline_depth: 1,
            },
            cost: SimCost {
                step: Duration::from_millis(1),
                upload: Duration::from_millis(3),
                ..SimCost::FREE
            },
            loader: LoaderScript { delay: Duration::from_millis(2), failing: HashSet::new() },
            max_requests: 64,
            context_length: 200,
            sim: SimConfig {
                vocab_size: 64,
                check_prefixes: true,
                clock: SimClock::simulated(),
                ..SimConfig::default()
            },
        }
    }
}

impl Setup {
    fn base(&self) -> BaseModelSpec {
        BaseModelSpec {
            id: "sim".into(),
            weights_digest: WeightsDigest([0; 32]),
            architecture: "sim".into(),
            hidden_size: 1,
            intermediate_size: 1,
            num_layers: 1,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 1,
            vocab_size: 64,
            context_length: self.context_length,
        }
    }

    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            scheduler: self.scheduler,
            residency: self.residency,
            max_requests: self.max_requests,
            base: self.base(),
            eos_tokens: vec![EOS],
        }
    }

    pub fn sim(&self, clock: SimClock) -> SimConfig {
        SimConfig { capacity: self.capacity, cost: self.cost, clock, ..self.sim.clone() }
    }
}

pub struct Rig {
    pub engine: Engine,
    pub handle: EngineHandle,
    pub clock: SimClock,
}

impl Rig {
    pub fn new(setup: &Setup) -> Self {
        let clock = SimClock::simulated();
        let backend = SimBackend::new(setup.sim(clock.clone()));
        let loader = ScriptedLoader::new(setup.loader.clone(), clock.clone());
        let (sender, commands) = mpsc::channel(setup.max_requests + 1024);
        let (stats, watch) = watch::channel(EngineStats::default());
        let metrics = Arc::new(EngineMetrics::default());
        let thread = std::thread::current();
        let handle = EngineHandle::new(sender, setup.max_requests, watch, metrics.clone(), thread);
        let engine = Engine::new(
            setup.config(),
            Box::new(backend),
            Box::new(loader),
            commands,
            stats,
            metrics,
        );
        Self { engine, handle, clock }
    }

    pub fn submit(
        &self,
        tenant_id: u8,
        adapter: Option<&Arc<AdapterManifest>>,
        prompt: &[u32],
        max_tokens: u32,
    ) -> Reader {
        let (request, reader) = request(tenant_id, adapter, prompt, max_tokens);
        self.try_submit(request).unwrap();
        reader
    }

    pub fn try_submit(&self, request: EngineRequest) -> Result<(), SubmitError> {
        self.handle.try_submit_at(request, self.clock.now())
    }

    /// One step; time passes also when there is nothing to do.
    pub fn step(&mut self) {
        let worked = self.engine.step(self.clock.now()).unwrap();
        self.engine.assert_invariants();
        if !worked {
            self.clock.wait_until(self.clock.now() + Duration::from_millis(1));
        }
    }

    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    pub fn finish(&mut self, readers: &mut [&mut Reader]) {
        for _ in 0..100_000 {
            self.step();
            for reader in &mut *readers {
                reader.read();
            }
            if readers.iter().all(|reader| reader.end.is_some()) {
                return;
            }
        }
        panic!("requests do not end");
    }

    /// The tokens that a request gets when it is alone.
    pub fn alone(adapter: Option<&Arc<AdapterManifest>>, prompt: &[u32], max: u32) -> Vec<u32> {
        let mut rig = Rig::new(&Setup::default());
        let mut reader = rig.submit(1, adapter, prompt, max);
        rig.finish(&mut [&mut reader]);
        reader.tokens
    }
}

impl Engine {
    pub fn assert_invariants(&self) {
        self.scheduler.assert_invariants(&self.kv);
        self.residency.assert_invariants();
        let beside = self.backend.capacity().adapter_bytes_beside(self.kv.num_blocks());
        assert_eq!(self.residency.device_bytes(), beside, "one border");
        assert_eq!(self.requests.len(), self.by_id.len());
        assert_eq!(self.requests.len(), self.scheduler.running() + self.scheduler.waiting());
    }

    /// Nothing is held by anybody.
    pub fn assert_idle(&self) {
        assert!(self.requests.is_empty());
        assert_eq!(self.kv.available(), self.kv.num_blocks());
        assert!(self.residency.is_unused());
    }
}
