//! The engine's thread, from its start to its end.

use super::handle::{CONTROL_COMMANDS, Command};
use super::{Engine, EngineConfig, EngineError, EngineHandle, EngineState, EngineStats};
use crate::adapters::loader::{AdapterSource, Loader};
use crate::telemetry::EngineMetrics;
use lorikeet_compute::backend::{Backend, BackendError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How long the thread sleeps when nothing can run: while uploads are under way, which do not wake
/// it; while requests wait, for quanta and deadlines; and when there is nothing at all to do.
/// Commands and ended loads wake it at once.
const UPLOAD_NAP: Duration = Duration::from_micros(200);
const WAITING_NAP: Duration = Duration::from_millis(2);
const IDLE_NAP: Duration = Duration::from_secs(1);

/// Starts the engine. `backend` is called on the engine's thread; until it returns, requests are
/// accepted and wait. An error, if the operating system gives no thread.
pub fn spawn<B>(
    config: EngineConfig,
    source: AdapterSource,
    backend: B,
) -> std::io::Result<(EngineHandle, JoinHandle<Result<(), EngineError>>)>
where
    B: FnOnce() -> Result<Box<dyn Backend>, BackendError> + Send + 'static,
{
    let max_requests = config.max_requests;
    let (sender, commands) = mpsc::channel(max_requests + CONTROL_COMMANDS);
    let (stats, watch) = watch::channel(EngineStats::default());
    let metrics = Arc::new(EngineMetrics::default());
    let counted = metrics.clone();
    let thread = std::thread::Builder::new()
        .name("lk-engine".into())
        .spawn(move || live(config, source, backend, commands, stats, counted))?;
    let handle = EngineHandle::new(sender, max_requests, watch, metrics, thread.thread().clone());
    Ok((handle, thread))
}

fn live<B>(
    config: EngineConfig,
    source: AdapterSource,
    backend: B,
    mut commands: mpsc::Receiver<Command>,
    stats: watch::Sender<EngineStats>,
    metrics: Arc<EngineMetrics>,
) -> Result<(), EngineError>
where
    B: FnOnce() -> Result<Box<dyn Backend>, BackendError>,
{
    let start = || -> Result<_, EngineError> {
        let backend = backend()?;
        let engine = std::thread::current();
        let (base, allocator) = (config.base.clone(), backend.host_allocator());
        let (loader, found) = Loader::open(source, allocator, base, engine)?;
        Ok((backend, loader, found))
    };
    let (backend, loader, found) = match caught(start) {
        Ok(parts) => parts,
        Err(error) => {
            stats.send_modify(|s| s.state = EngineState::Stopped(error.to_string()));
            super::commands::refuse_all(&mut commands, &error.to_string());
            return Err(error);
        }
    };
    let mut engine = Engine::new(config, backend, Box::new(loader), commands, stats, metrics);
    engine.restore(found, Instant::now());
    let result = caught(|| engine.run());
    if let Err(error) = &result {
        tracing::error!(%error, "the engine stopped");
    }
    engine.stop(result.as_ref().err().map(ToString::to_string));
    result
}

impl Engine {
    fn run(&mut self) -> Result<(), EngineError> {
        self.publish();
        loop {
            let worked = self.step(Instant::now())?;
            if matches!(self.state, EngineState::Stopped(_)) {
                return Ok(());
            }
            if !worked {
                std::thread::park_timeout(self.nap());
            }
        }
    }

    fn nap(&self) -> Duration {
        if self.residency.uploads() > 0 {
            return UPLOAD_NAP;
        }
        let nobody_waits = self.requests.is_empty() && self.warm_ups.is_empty();
        if nobody_waits { IDLE_NAP } else { WAITING_NAP }
    }

    /// Refuses what comes, and tells every request why.
    fn stop(&mut self, error: Option<String>) {
        if let Some(reason) = error {
            self.state = EngineState::Stopped(reason);
        }
        let EngineState::Stopped(reason) = self.state.clone() else { return };
        // First the requests, so that whoever sees the state finds them ended.
        self.fail_all(&reason, Instant::now());
        self.publish();
    }
}

/// Runs what may panic; a panic is an error like others.
fn caught<T>(run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    // What a panic may have left half-done is only read to end the requests.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(EngineError::Panic))
}
