//! The node, assembled: model, engine, usage log, link and API, and their orderly end.
//!
//! ```text
//! DATA/usage/      the usage log: what is not shipped yet exists only here
//! DATA/manifest/   what the node serves from while the control plane is away
//! DATA/adapters/   adapters already fetched; may be deleted while the node is down
//! ```

mod engine;
#[cfg(test)]
mod tests;

use crate::adapters::{ObjectStore, S3Store};
use crate::api::{self, Api, Bodies, Door, Idempotency, Tokenizing};
use crate::config::{Config, DrainConfig, ToolCalls};
use crate::durable::unix_ms;
use crate::engine::{EngineHandle, EngineState};
use crate::guidance::Guidance;
use crate::link::{Keeper, Link, Manifest, Presentation, Uplink};
use crate::telemetry::{self, Sources, Telemetry, Traces};
use crate::usage::{Shipper, UsageLog};
use anyhow::Context;
use lorikeet_compute::model::{self, LoadProgress, LoadedModel, ModelWeights};
use lorikeet_http::HttpServer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

/// What the last answers may take to be written, once the engine has ended their requests.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The engine has ended by itself, by a panic or an error of the device: the process is to be started
/// again. Requests in flight were answered 503, and their accounts are closed.
#[derive(Debug, thiserror::Error)]
#[error("the engine stopped: {0}")]
pub struct EngineStopped(String);

/// Runs a node until `shutdown`, or until its engine stops: [`EngineStopped`].
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let api = bind(config.listen, "LORIKEET_NODE_LISTEN").await?;
    let metrics = match config.metrics_listen {
        Some(address) => Some(bind(address, "LORIKEET_METRICS_LISTEN").await?),
        None => None,
    };
    let store = Arc::new(S3Store::new(config.s3.clone()));
    serve(config, Sockets { api, metrics }, store, shutdown).await
}

/// Where a node is spoken to.
pub struct Sockets {
    pub api: TcpListener,
    /// Operators' own: it names tenants and adapters and asks for no key.
    pub metrics: Option<TcpListener>,
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} ({setting} names another address)"))
}

/// As [`run`], on sockets and an object store that are there already. When it returns, every task of
/// the node has ended and its directory is free for the next.
pub async fn serve(
    config: Config,
    sockets: Sockets,
    store: Arc<dyn ObjectStore>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let address = sockets.api.local_addr()?;
    let origins = config.cors_origins();
    let uplink =
        Uplink::new(&config.control_plane, config.control_plane_ca.as_deref(), &config.token_file)?;
    let telemetry = Telemetry::new(Traces::new(&config.trace, &uplink.node_id().to_string())?);
    // The log first: a second process on the same data must not get as far as the model.
    let usage = Arc::new(open_usage(&config).await?);
    // From here on the process answers; an error drops the server, and with it every connection.
    let door = Door::default();
    let slow_readers = telemetry.requests.slow_readers.clone();
    let http = HttpServer::start(sockets.api, door.router(), config.patience, slow_readers);
    let model = load_model(&config, door.progress()).await?;
    let tokenizer = Arc::new(model.tokenizer);
    let eos_tokens = model.weights.config.eos_tokens.clone();
    let guidance = Guidance::new(tokenizer.clone(), model.base.vocab_size, eos_tokens);
    let (engine, base) = (engine::start(&config, model.weights, store)?, model.base);

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

    let metrics = sockets.metrics.map(|listener| {
        let sources = Sources {
            telemetry: telemetry.clone(),
            engine: engine.handle.clone(),
            manifest: manifest.clone(),
            usage: usage.clone(),
            model: base.id.clone(),
            device: engine.device,
        };
        HttpServer::start(listener, telemetry::router(sources), config.patience, Arc::default())
    });
    let api = Arc::new(Api {
        base: base.clone(),
        tokenizer,
        tokenizing: Tokenizing::new(config.max_requests),
        chat_template: model.chat_template,
        calls_tools: config.tool_calls != ToolCalls::Refused,
        guidance: Arc::new(guidance),
        manifest,
        usage: usage.clone(),
        engine: engine.handle.clone(),
        limiter: Arc::default(),
        idempotency: Idempotency::default(),
        bodies: Bodies::new(config.read_body_within),
        request_within: config.request_within,
        stopping: shutdown.clone(),
        telemetry: telemetry.clone(),
        started_unix_s: unix_ms() / 1000,
    });
    let announcement = announce(engine.handle.clone(), address, base.id, engine.device);
    let announcement = tokio::spawn(announcement);
    door.open(api::router(api.clone(), origins));
    let outcome = until_stopped(&engine.handle, &shutdown, config.drain.grace).await;

    // Each part goes when nobody needs it any more: requests, then the engine, the log that their
    // accounts are closed in, and last the way to the control plane.
    drain(&engine.handle, http, config.drain).await;
    // Those that need no client end with the engine; one may still wait for a log that cannot be written.
    let _ = tokio::time::timeout(LAST_WORDS, api.idempotency.ended()).await;
    engine.stop().await;
    announcement.await?;
    let log = usage.clone();
    spawn_blocking(move || log.close()).await?;
    api.idempotency.ended().await;
    stop_shipping.cancel();
    shipping.await?;
    stop_link.cancel();
    link.await?;
    usage.release();
    if let Some(metrics) = metrics {
        metrics.close(LAST_WORDS).await;
    }
    spawn_blocking(move || telemetry.traces.flush()).await?;
    outcome
}

async fn announce(engine: EngineHandle, address: SocketAddr, model: String, device: &'static str) {
    let mut stats = engine.watch();
    if stats.wait_for(|stats| stats.state == EngineState::Running).await.is_ok() {
        tracing::info!(%address, model, device, "node ready");
    }
}

/// Returns when the node is to end: a while after `shutdown`, in which it still serves and says that it
/// is not ready, so that load balancers turn away first. [`EngineStopped`] a while after that.
async fn until_stopped(
    engine: &EngineHandle,
    shutdown: &CancellationToken,
    grace: Duration,
) -> anyhow::Result<()> {
    let told = async {
        shutdown.cancelled().await;
        tracing::info!(grace_s = grace.as_secs(), "node stops: not ready any more");
        tokio::time::sleep(grace).await;
    };
    let mut stats = engine.watch();
    let stopped = async {
        match stats.wait_for(|stats| matches!(stats.state, EngineState::Stopped(_))).await {
            Ok(stats) => match &stats.state {
                EngineState::Stopped(reason) => reason.clone(),
                _ => String::new(),
            },
            Err(_) => "its thread is gone".to_owned(),
        }
    };
    tokio::select! {
        () = told => Ok(()),
        reason = stopped => {
            // Whoever asks meanwhile hears that the node is not ready, before nobody answers.
            tokio::time::sleep(LAST_WORDS).await;
            Err(EngineStopped(reason).into())
        }
    }
}

/// Lets requests under way end, for a bounded time, while new ones are answered 503. Returns when no
/// connection is left.
async fn drain(engine: &EngineHandle, http: HttpServer, config: DrainConfig) {
    let began = Instant::now();
    if tokio::time::timeout(config.timeout, engine.drain()).await.is_err() {
        let seconds = config.timeout.as_secs();
        tracing::warn!("requests did not end in {seconds} s and are broken off");
        engine.shutdown().await;
    }
    let left = config.timeout.saturating_sub(began.elapsed()).max(LAST_WORDS);
    if !http.close(left).await {
        tracing::warn!("clients did not take their answers in time and are broken off");
    }
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

async fn load_model(config: &Config, progress: Arc<LoadProgress>) -> anyhow::Result<Model> {
    let (path, name) = (config.model.clone(), config.model_name.clone());
    let load = move || model::load(&path, name.as_deref(), &progress);
    let LoadedModel { weights, tokenizer, mut chat_template } = spawn_blocking(load).await??;
    if let ToolCalls::As(format) = config.tool_calls {
        chat_template.set_tool_format(format);
    }
    Ok(Model { base: weights.config.spec.clone(), weights, tokenizer, chat_template })
}
