//! A node for one customer, without a control plane: its API on a socket, and its engine at hand, so that
//! the same work can be asked of either.

use super::BenchDevice;
use super::adapters::RandomStore;
use super::client::ask;
use crate::adapters::{ResidencyConfig, loader::AdapterSource};
use crate::api::{self, Api, Bodies, Idempotency, Tokenizing};
use crate::durable::unix_ms;
use crate::engine::{self, EngineConfig, EngineHandle, EngineState};
use crate::guidance::Guidance;
use crate::link::{Keeper, Manifest};
use crate::scheduler::SchedulerConfig;
use crate::telemetry::{Telemetry, TraceConfig, Traces};
use crate::usage::{LogConfig, UsageLog};
use anyhow::Context;
use lorikeet_compute::backend::cpu;
use lorikeet_compute::backend::cuda::CudaBackend;
use lorikeet_compute::backend::sim::{SimBackend, SimConfig};
use lorikeet_compute::backend::{Backend, BackendError};
use lorikeet_compute::model::{self, LoadProgress, LoadedModel, ModelWeights};
use lorikeet_contract::key::{ApiKey, Scope};
use lorikeet_contract::link::{KeyResource, Resource, ResourceKind, TenantResource};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::{KeyId, TenantId};
use lorikeet_http::{HttpServer, Patience};
use prost::Message;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

/// For answers under way when the node is stopped.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Longer than any that is measured.
const REQUEST_WITHIN: Duration = Duration::from_secs(3600);

pub struct BenchNodeConfig {
    /// A GGUF file, or a directory in Hugging Face's layout.
    pub model: PathBuf,
    pub device: BenchDevice,
    pub scheduler: SchedulerConfig,
    pub max_requests: usize,
    /// Of usage log, manifest and disk cache, which it leaves behind.
    pub directory: PathBuf,
}

pub struct BenchNode {
    /// Includes `/v1`.
    pub api_base_url: String,
    pub model: String,
    /// Of its one tenant.
    pub key: ApiKey,
    pub engine: EngineHandle,
    thread: JoinHandle<Result<(), engine::EngineError>>,
    usage: Arc<UsageLog>,
    http: HttpServer,
}

impl BenchNode {
    /// Returns when it serves.
    pub async fn start(config: BenchNodeConfig) -> anyhow::Result<Self> {
        let BenchNodeConfig { model, device, scheduler, max_requests, directory } = config;
        let loaded = spawn_blocking(move || model::load(&model, None, &LoadProgress::default()));
        let LoadedModel { weights, tokenizer, chat_template } = loaded.await??;
        let (base, tokenizer) = (weights.config.spec.clone(), Arc::new(tokenizer));
        let eos_tokens = weights.config.eos_tokens.clone();
        let guidance = Guidance::new(tokenizer.clone(), base.vocab_size, eos_tokens.clone());
        let engine_config = EngineConfig {
            scheduler,
            residency: ResidencyConfig::default(),
            max_requests,
            base: base.clone(),
            eos_tokens,
        };
        let source = AdapterSource {
            store: Arc::new(RandomStore::default()),
            directory: directory.join("adapters"),
            runtime: tokio::runtime::Handle::current(),
        };
        let (engine, thread) =
            engine::spawn(engine_config, source, move || backend(device, &weights))?;
        let key = ApiKey::generate();
        let manifest = Arc::new(Manifest::default());
        let kept = directory.join("manifest");
        let mut keeper =
            Keeper::open(&kept, base.weights_digest, manifest.clone(), engine.clone())?;
        keeper.replace(world(&key)).await;
        let untraced = TraceConfig { endpoint: None, ca: None, sampled: 0.0 };
        let telemetry = Telemetry::new(Traces::new(&untraced, "bench")?);
        let slow_readers = telemetry.requests.slow_readers.clone();
        let (usage, _) = UsageLog::open(&directory.join("usage"), LogConfig::default())?;
        let usage = Arc::new(usage);
        let patience = Patience::default();
        let api = Arc::new(Api {
            base: base.clone(),
            tokenizer,
            tokenizing: Tokenizing::new(max_requests),
            chat_template,
            calls_tools: true,
            guidance: Arc::new(guidance),
            manifest,
            usage: usage.clone(),
            engine: engine.clone(),
            limiter: Arc::default(),
            idempotency: Idempotency::default(),
            bodies: Bodies::new(LAST_WORDS),
            request_within: REQUEST_WITHIN,
            stopping: CancellationToken::new(),
            telemetry,
            started_unix_s: unix_ms() / 1000,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let api_base_url = format!("http://{}/v1", listener.local_addr()?);
        let http = HttpServer::start(listener, api::router(api, None), patience, slow_readers);
        let mut stats = engine.watch();
        stats.wait_for(|stats| stats.state != EngineState::Starting).await?;
        if let EngineState::Stopped(reason) = engine.stats().state {
            anyhow::bail!("the engine does not start: {reason}");
        }
        Ok(Self { api_base_url, model: base.id, key, engine, thread, usage, http })
    }

    /// A request straight into the engine.
    pub async fn ask_engine(
        &self,
        tenant: TenantId,
        prompt: Vec<u32>,
        output_tokens: u32,
    ) -> anyhow::Result<()> {
        ask(&self.engine, tenant, None, prompt, output_tokens, || {}).await
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.http.close(LAST_WORDS).await;
        self.engine.shutdown().await;
        let thread = self.thread;
        spawn_blocking(move || thread.join()).await?.ok().context("the engine panicked")??;
        let usage = self.usage;
        spawn_blocking(move || usage.release()).await?;
        Ok(())
    }
}

/// One tenant without limits, and its key.
fn world(key: &ApiKey) -> ManifestState {
    let (tenant, id) = (TenantId::new().to_string(), KeyId::new().to_string());
    let owner =
        TenantResource { id: tenant.clone(), name: "bench".into(), ..TenantResource::default() };
    let held = KeyResource {
        id: id.clone(),
        tenant_id: tenant.clone(),
        key_id: key.key_id().into(),
        secret_hash: key.secret_hash().to_vec(),
        scopes: vec![Scope::Inference.as_str().into()],
        expires_unix_ms: None,
    };
    let resources = [
        (ResourceKind::Tenant, tenant, owner.encode_to_vec()),
        (ResourceKind::Key, id, held.encode_to_vec()),
    ];
    let resources =
        resources.map(|(kind, id, payload)| Resource { kind: kind as i32, id, payload });
    ManifestState::from_resources(1, 1, resources)
}

/// Called on the engine's thread.
fn backend(device: BenchDevice, weights: &ModelWeights) -> Result<Box<dyn Backend>, BackendError> {
    match device {
        BenchDevice::Cpu(config) => cpu::backend(weights, config),
        BenchDevice::Cuda(config) => Ok(Box::new(CudaBackend::new(weights, config)?)),
        BenchDevice::Sim(config) => {
            let vocab_size = weights.config.spec.vocab_size;
            Ok(Box::new(SimBackend::new(SimConfig { vocab_size, ..config })))
        }
    }
}
