//! The node, assembled: model, engine, usage log, link and API, and their orderly end.
//!
//! ```text
//! DATA/usage/      the usage log: what is not shipped yet exists only here
//! DATA/manifest/   what the node serves from while the control plane is away
//! DATA/adapters/   adapters already fetched; may be deleted while the node is down
//! ```

#[cfg(test)]
mod tests;

use crate::adapters::loader::AdapterSource;
use crate::adapters::{ObjectStore, S3Store};
use crate::api::{self, Api};
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::{self, CudaBackend};
use crate::backend::sim::{SimBackend, SimConfig};
use crate::backend::{Backend, BackendError};
use crate::config::{Config, Device};
use crate::durable::unix_ms;
use crate::engine::{self, EngineConfig, EngineHandle, EngineState};
use crate::link::{Keeper, Link, Manifest, Presentation, Uplink};
use crate::model::{self, LoadedModel, ModelWeights};
use crate::usage::{Shipper, UsageLog};
use anyhow::Context;
use axum::serve::ListenerExt;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

/// Requests under way may take this long to end when the node stops; then they fail.
const DRAIN: Duration = Duration::from_secs(30);

/// After that, how long the last records may take to reach the control plane.
const LAST_SHIPMENT: Duration = Duration::from_secs(5);

/// Runs a node until `shutdown`, or until its engine stops, which is an error.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = bind(config.listen).await?;
    let store = Arc::new(S3Store::new(config.s3.clone()));
    serve(config, listener, store, shutdown).await
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} (LORIKEET_NODE_LISTEN names another address)")
    })
}

/// As [`run`], on a socket and an object store that are there already.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    store: Arc<dyn ObjectStore>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let uplink =
        Uplink::new(&config.control_plane, config.control_plane_ca.as_deref(), &config.token_file)?;
    // The log first: a second process on the same data must not get as far as the model.
    let usage = Arc::new(open_usage(&config).await?);
    let model = load_model(&config).await?;
    let (engine, base) = (start_engine(&config, model.weights, store)?, model.base);

    let manifest = Arc::new(Manifest::default());
    let keeper = {
        let (dir, base) = (config.data.join("manifest"), base.weights_digest);
        let (manifest, engine) = (manifest.clone(), engine.handle.clone());
        spawn_blocking(move || {
            Keeper::open(&dir, base, manifest, engine)
                .with_context(|| format!("the kept manifest at {}", dir.display()))
        })
        .await??
    };
    let stop_link = CancellationToken::new();
    let link = Link {
        uplink: uplink.clone(),
        presentation: Presentation {
            name: config.name,
            base: base.clone(),
            api_base_url: config.public_api_url,
            backend: engine.device,
        },
        keeper,
        manifest: manifest.clone(),
        engine: engine.handle.clone(),
    };
    let link = tokio::spawn(link.run(stop_link.clone()));
    let stop_shipping = CancellationToken::new();
    let shipping = tokio::spawn(ship(Shipper::new(usage.clone(), uplink)?, stop_shipping.clone()));

    let api = Arc::new(Api {
        base: base.clone(),
        tokenizer: model.tokenizer,
        chat_template: model.chat_template,
        manifest,
        usage: usage.clone(),
        engine: engine.handle.clone(),
        started_unix_s: unix_ms() / 1000,
    });
    tokio::spawn(announce(engine.handle.clone(), address, base.id, engine.device));
    let router = api::router(api, config.dashboard_origin);
    let stopped = serve_http(listener, router, &engine.handle, shutdown).await;

    engine.handle.shutdown().await;
    spawn_blocking(move || usage.close()).await?;
    stop_shipping.cancel();
    if tokio::time::timeout(LAST_SHIPMENT, shipping).await.is_err() {
        tracing::warn!("the last usage records stay here until the next start ships them");
    }
    stop_link.cancel();
    link.await?;
    stopped
}

async fn announce(engine: EngineHandle, address: SocketAddr, model: String, device: &'static str) {
    let mut stats = engine.watch();
    if stats.wait_for(|stats| stats.state == EngineState::Running).await.is_ok() {
        tracing::info!(%address, model, device, "node ready");
    }
}

/// Serves until `shutdown`, then lets requests under way end. An error when the engine stops.
async fn serve_http(
    listener: TcpListener,
    router: axum::Router,
    engine: &EngineHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    // Tokens are small and wait for nobody.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY on a connection");
        }
    });
    let closing = CancellationToken::new();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(closing.clone().cancelled_owned())
        .into_future();
    let mut server = tokio::spawn(server);
    let mut stats = engine.watch();
    let engine_stopped = async {
        let stopped = |state: &EngineState| matches!(state, EngineState::Stopped(_));
        match stats.wait_for(|stats| stopped(&stats.state)).await {
            Ok(stats) => match &stats.state {
                EngineState::Stopped(reason) => reason.clone(),
                _ => String::new(),
            },
            Err(_) => "its thread is gone".to_owned(),
        }
    };
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        reason = engine_stopped => Err(anyhow::anyhow!("the engine stopped: {reason}")),
        ended = &mut server => {
            return ended?.context("the HTTP server stopped");
        }
    };
    if result.is_ok() {
        tracing::info!("node stops: requests under way may end, new ones are refused");
    }
    closing.cancel();
    let ended = async {
        engine.drain().await;
        let _ = (&mut server).await;
    };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("requests did not end in {} s and are broken off", DRAIN.as_secs());
        engine.shutdown().await;
        server.abort();
        let _ = server.await;
    }
    result
}

async fn open_usage(config: &Config) -> anyhow::Result<UsageLog> {
    let (dir, log) = (config.data.join("usage"), config.usage.clone());
    let (usage, recovery) = spawn_blocking(move || UsageLog::open(&dir, log)).await??;
    if recovery.crashed_requests > 0 || recovery.torn_bytes > 0 {
        tracing::warn!(
            crashed_requests = recovery.crashed_requests,
            torn_bytes = recovery.torn_bytes,
            "the node had crashed: requests open then are closed with their last durable count"
        );
    }
    Ok(usage)
}

async fn ship(shipper: Shipper, stop: CancellationToken) {
    if let Err(error) = shipper.run(stop).await {
        tracing::error!(%error, "usage is not shipped any more: records are kept, and an operator must look");
    }
}

struct Model {
    base: lorikeet_contract::BaseModelSpec,
    weights: ModelWeights,
    tokenizer: model::Tokenizer,
    chat_template: model::ChatTemplate,
}

async fn load_model(config: &Config) -> anyhow::Result<Model> {
    let (path, name) = (config.model.clone(), config.model_name.clone());
    let load = move || model::load(&path, name.as_deref());
    let LoadedModel { weights, tokenizer, chat_template } = spawn_blocking(load).await??;
    Ok(Model { base: weights.config.spec.clone(), weights, tokenizer, chat_template })
}

struct RunningEngine {
    handle: EngineHandle,
    /// cpu or sim.
    device: &'static str,
}

fn start_engine(
    config: &Config,
    weights: ModelWeights,
    store: Arc<dyn ObjectStore>,
) -> anyhow::Result<RunningEngine> {
    let engine_config = EngineConfig {
        scheduler: config.scheduler,
        residency: config.residency,
        max_requests: config.max_requests,
        base: weights.config.spec.clone(),
        eos_tokens: weights.config.eos_tokens.clone(),
    };
    let source = AdapterSource {
        store,
        directory: config.data.join("adapters"),
        runtime: tokio::runtime::Handle::current(),
    };
    let wanted = choose(config.device.clone());
    let device = match wanted {
        Device::Cuda(_) => "cuda",
        Device::Auto { .. } | Device::Cpu(_) => "cpu",
        Device::Sim(_) => "sim",
    };
    let backend = move || backend(wanted, &weights);
    let (handle, _thread) = engine::spawn(engine_config, source, backend)?;
    Ok(RunningEngine { handle, device })
}

/// Looks whether there is a GPU, when that is to decide.
fn choose(device: Device) -> Device {
    let Device::Auto { cpu, cuda } = device else { return device };
    match cuda::probe(cuda.ordinal) {
        Ok(gpu) => {
            tracing::info!(gpu = gpu.name, "a GPU computes");
            Device::Cuda(cuda)
        }
        Err(reason) => {
            tracing::info!(%reason, "the CPU computes: no GPU can be used");
            Device::Cpu(cpu)
        }
    }
}

/// Called on the engine's thread.
fn backend(device: Device, weights: &ModelWeights) -> Result<Box<dyn Backend>, BackendError> {
    match device {
        Device::Cuda(config) => Ok(Box::new(CudaBackend::new(weights, config)?)),
        Device::Auto { cpu: config, .. } | Device::Cpu(config) => {
            Ok(Box::new(CpuBackend::new(weights, config)?))
        }
        Device::Sim(config) => {
            let vocab_size = weights.config.spec.vocab_size;
            Ok(Box::new(SimBackend::new(SimConfig { vocab_size, ..config })))
        }
    }
}
