//! Accounts, keys, adapters, manifest, usage and the pages that show them.
//!
//! ```text
//! http -> access -> api, pages -> db        uploads, jobs: adapters on their way to the nodes
//!                   auth: who calls         link, usage:   the nodes' side
//! ```

pub mod access;
pub mod adapters;
pub mod api;
pub mod auth;
pub mod config;
pub mod db;
pub mod error;
mod http;
pub mod jobs;
pub mod keys;
pub mod link;
pub mod metrics;
pub mod objects;
mod pages;
pub mod state;
pub mod tenants;
pub mod uploads;
pub mod usage;

pub use auth::create_operator;
pub use config::{Config, ConfigError};
pub use db::migrate::migrate;
pub use error::ApiError;
pub use state::AppState;

use access::{Registry, Route};
use anyhow::Context;
use lorikeet_http::{HttpServer, Patience};
use lorikeet_metrics::Counter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Requests in flight get this long to end after the shutdown began.
const DRAIN: Duration = Duration::from_secs(10);
/// A little less, so that connections are gone when the rest is given up.
const HTTP_DRAIN: Duration = Duration::from_secs(9);
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Serves until `shutdown` is cancelled or a part fails; then all parts stop.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let db = db::Db::connect(&config.database).await?;
    db::migrate::check_version(&db).await?;
    let tls = config.grpc_tls.as_ref().map(link::load_tls).transpose()?;
    let http = bind(config.listen, "LORIKEET_LISTEN").await?;
    let grpc = bind(config.grpc_listen, "LORIKEET_GRPC_LISTEN").await?;
    let key = link::load_or_create_signing_key(&config.node_signing_key)?;
    let metrics = match config.metrics_listen {
        Some(address) => Some(bind(address, "LORIKEET_METRICS_LISTEN").await?),
        None => None,
    };
    tracing::info!(http = %http.local_addr()?, grpc = %grpc.local_addr()?, "control plane listens");
    let state = AppState::new(config, db.clone());
    let counted = state.metrics.clone();
    let nodes = link::LinkParts { pool: db.ingest.clone(), key, tls, metrics: counted.clone() };

    let stop = shutdown.child_token();
    let mut parts = JoinSet::new();
    let slow_readers = counted.slow_readers.clone();
    parts.spawn(serve_http(http, app(&state).router, slow_readers, stop.clone()));
    if let Some(listener) = metrics {
        let router = metrics::router(counted, db.clone());
        parts.spawn(serve_http(listener, router, Arc::default(), stop.clone()));
    }
    parts.spawn(serve_nodes(grpc, nodes, stop.clone()));
    parts.spawn(sweep(state.clone(), stop.clone()));
    parts.spawn(run_jobs(state.clone(), stop.clone()));
    let outcome = until_stopped(&mut parts, &stop).await;
    // A request that outlived the drain may still hold a connection: it does not hold us.
    let _ = tokio::time::timeout(DRAIN, db.close()).await;
    outcome
}

/// The first part to end ends the others; its error is the one reported.
async fn until_stopped(
    parts: &mut JoinSet<anyhow::Result<()>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    let mut give_up = std::pin::pin!(async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    });
    loop {
        let ended = tokio::select! {
            ended = parts.join_next() => ended,
            () = &mut give_up => {
                tracing::warn!(parts = parts.len(), "stopping without waiting any longer");
                parts.shutdown().await;
                return outcome;
            }
        };
        let Some(ended) = ended else { return outcome };
        stop.cancel();
        let result = ended.context("a part of the control plane panicked").and_then(|r| r);
        outcome = outcome.and(result);
    }
}

/// Binds, or says which setting to change.
pub async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: set {setting} to a free address"))
}

/// The whole HTTP side.
pub struct App {
    pub router: axum::Router,
    /// Every route with its access rule.
    pub routes: Vec<Route>,
}

pub fn app(state: &AppState) -> App {
    let registry = pages::routes(api::routes(Registry::new(state.clone())));
    let (router, routes) = api::description::routes(registry).finish();
    App { router: http::surround(router, &state.config, state.metrics.clone()), routes }
}

async fn serve_http(
    listener: TcpListener,
    router: axum::Router,
    slow_readers: Arc<Counter>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let server = HttpServer::start(listener, router, Patience::default(), slow_readers);
    stop.cancelled().await;
    if !server.close(HTTP_DRAIN).await {
        tracing::warn!("requests did not end in {} s and are broken off", HTTP_DRAIN.as_secs());
    }
    Ok(())
}

async fn run_jobs(state: AppState, stop: CancellationToken) -> anyhow::Result<()> {
    jobs::run(jobs::JobContext { db: state.db, objects: state.objects }, stop).await;
    Ok(())
}

async fn serve_nodes(
    listener: TcpListener,
    parts: link::LinkParts,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    link::serve(listener, parts, stop).await.context("the nodes' gRPC server failed")
}

/// Forgets ended sessions and old login counters.
async fn sweep(state: AppState, stop: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let swept = sqlx::query("select auth_sweep()").execute(state.db.app.untenanted()).await;
        if let Err(error) = swept {
            tracing::warn!(%error, "ended sessions were not swept; trying again later");
        }
    }
}
