//! An engine on a simulated device in simulated time, stepped by hand and checked after each step.

use crate::adapters::loader::{AdapterLoader, LoadEvent};
use crate::adapters::residency::{FetchFailure, LoadAction, ReadFailure};
use crate::adapters::{AdapterKey, AdapterManifest, ResidencyConfig};
use crate::engine::{
    Engine, EngineConfig, EngineEvent, EngineHandle, EngineRequest, EngineStats, FinishReason,
    RequestError, SubmitError, Usage,
};
use crate::scheduler::SchedulerConfig;
use crate::share::TenantShare;
use crate::telemetry::EngineMetrics;
use lorikeet_compute::backend::SampledToken;
use lorikeet_compute::backend::sim::{SimBackend, SimClock, SimConfig, SimCost};
use lorikeet_compute::backend::{Capacity, HostAdapter, HostData};
use lorikeet_compute::sampling::{LogitRules, SamplingParams};
use lorikeet_contract::adapter::{ArtifactHeader, Dtype, ModuleEntry, TensorRef};
use lorikeet_contract::{
    AdapterDigest, ArtifactDigest, BaseModelSpec, KeyId, Linear, RequestId, TenantId, WeightsDigest,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

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

pub fn host_adapter(manifest: &AdapterManifest) -> HostAdapter {
    let tensor = |bytes| TensorRef { dtype: Dtype::F32, offset: 0, bytes };
    let module = ModuleEntry {
        layer: 0,
        linear: Linear::QProj,
        rank: 8,
        in_features: 1,
        out_features: 1,
        scale: 1.0,
        a: tensor(manifest.bytes),
        b: tensor(0),
        magnitude: None,
    };
    let header = ArtifactHeader {
        layout_version: 1,
        adapter_digest: manifest.key.digest,
        base_weights_digest: WeightsDigest([0; 32]),
        modules: vec![module],
    };
    HostAdapter { key: manifest.key, header, data: HostData::File(Box::new(Vec::new())) }
}

/// Loads that take a while and sometimes fail.
#[derive(Clone)]
pub struct LoaderScript {
    pub delay: Duration,
    pub failing: HashSet<AdapterDigest>,
}

struct ScriptedLoader {
    script: LoaderScript,
    clock: SimClock,
    pending: Vec<(Instant, LoadAction)>,
    cancelled: Vec<AdapterKey>,
}

impl AdapterLoader for ScriptedLoader {
    fn start(&mut self, action: LoadAction) {
        self.pending.push((self.clock.now() + self.script.delay, action));
    }

    /// It ends at once.
    fn cancel_fetch(&mut self, key: AdapterKey) {
        let now = self.clock.now();
        let is_it = |action: &LoadAction| matches!(action, LoadAction::Fetch(m) if m.key == key);
        for (at, _) in self.pending.iter_mut().filter(|(_, action)| is_it(action)) {
            *at = now;
            self.cancelled.push(key);
        }
    }

    fn poll(&mut self, events: &mut Vec<LoadEvent>) {
        let now = self.clock.now();
        let (ended, pending) = self.pending.drain(..).partition(|(at, _)| *at <= now);
        self.pending = pending;
        let ended: Vec<_> = ended;
        for (_, action) in ended {
            events.push(match action {
                LoadAction::Fetch(m) if self.cancelled.contains(&m.key) => {
                    self.cancelled.retain(|key| *key != m.key);
                    LoadEvent::Fetched { key: m.key, result: Err(FetchFailure::Cancelled) }
                }
                LoadAction::Fetch(m) => {
                    let fails = self.script.failing.contains(&m.key.digest);
                    let failure = || FetchFailure::Failed("no such object".into());
                    let result = if fails { Err(failure()) } else { Ok(()) };
                    LoadEvent::Fetched { key: m.key, result }
                }
                LoadAction::Read(m) => {
                    let result: Result<_, ReadFailure> = Ok(host_adapter(&m));
                    LoadEvent::Read { key: m.key, result }
                }
                LoadAction::DropFile(file) => LoadEvent::Dropped { key: file.key },
            });
        }
    }
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

#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Finished(FinishReason, Usage),
    Failed(RequestError, Usage),
}

impl End {
    pub fn usage(&self) -> Usage {
        match self {
            End::Finished(_, usage) | End::Failed(_, usage) => *usage,
        }
    }
}

/// What a request's reader has seen.
pub struct Reader {
    pub id: RequestId,
    events: mpsc::Receiver<EngineEvent>,
    pub tokens: Vec<u32>,
    /// Of its prompt, since it runs.
    cached: Option<u32>,
    /// Of its prompt.
    pub scores: Option<Vec<SampledToken>>,
    pub end: Option<End>,
}

impl Reader {
    pub fn read(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            assert!(self.end.is_none(), "an event after the last one");
            match event {
                EngineEvent::Started { cached_tokens, .. } => {
                    assert!(self.cached.is_none() && self.tokens.is_empty(), "once, and first");
                    self.cached = Some(cached_tokens);
                }
                EngineEvent::Prompt(scores) => {
                    assert!(
                        self.scores.is_none() && self.tokens.is_empty(),
                        "once, before any token"
                    );
                    self.scores = Some(scores);
                }
                EngineEvent::Token(token) => self.tokens.push(token.token),
                EngineEvent::Finished { reason, usage } => {
                    self.end = Some(End::Finished(reason, usage));
                }
                EngineEvent::Failed { error, usage } => {
                    self.end = Some(End::Failed(error, usage));
                }
            }
        }
        if let Some(end) = &self.end {
            assert_eq!(end.usage().completion_tokens as usize, self.tokens.len());
            assert_eq!(end.usage().cached_tokens, self.cached.unwrap_or_default());
        }
    }

    pub fn reason(&self) -> Option<FinishReason> {
        match self.end {
            Some(End::Finished(reason, _)) => Some(reason),
            _ => None,
        }
    }

    pub fn error(&self) -> Option<&RequestError> {
        match &self.end {
            Some(End::Failed(error, _)) => Some(error),
            _ => None,
        }
    }

    pub fn usage(&self) -> Usage {
        self.end.as_ref().map(End::usage).expect("the request has ended")
    }
}

/// A request for so many tokens of an answer that nothing else ends.
pub fn request(
    tenant_id: u8,
    adapter: Option<&Arc<AdapterManifest>>,
    prompt: &[u32],
    max_tokens: u32,
) -> (EngineRequest, Reader) {
    let (sender, events) = mpsc::channel(max_tokens as usize + 3);
    let request = EngineRequest {
        id: RequestId::new(),
        tenant: tenant(tenant_id),
        share: TenantShare::default(),
        key: Some(key_id(tenant_id)),
        adapter: adapter.cloned(),
        prompt: prompt.to_vec(),
        params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        rules: LogitRules::default(),
        guide: None,
        max_tokens,
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        scores_prompt: false,
        deadline: None,
        events: sender,
    };
    let reader = Reader {
        id: request.id,
        events,
        tokens: Vec::new(),
        cached: None,
        scores: None,
        end: None,
    };
    (request, reader)
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
        let loader = ScriptedLoader {
            script: setup.loader.clone(),
            clock: clock.clone(),
            pending: Vec::new(),
            cancelled: Vec::new(),
        };
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
