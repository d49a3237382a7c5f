//! The engine: one thread that owns scheduler, KV cache, residency and backend, and so needs no
//! locks.
//!
//! ```text
//!            commands (bounded)                        events (bounded, per request)
//! handle ───────────────────────> accept ─┐        ┌──────────────────────────────────> api
//!                                         v        │
//! loader <──── load actions ────────── step: schedule, submit, collect, commit
//!        ──── load events (bounded) ─> accept ─^       │  ^
//!                                            uploads   v  │
//!                                             backend (submit / collect)
//! ```
//! With a pipeline depth of two a step is scheduled and submitted before the one before it has
//! been collected: the input of a row may then be [`Input::PreviousSample`](lorikeet_compute::backend::Input),
//! and the end of a sequence is noticed one step late. That step's row writes into blocks that are
//! free by then, which is harmless because steps execute in order.

mod border;
mod commands;
mod config;
mod execute;
mod guided;
mod handle;
mod places;
pub mod request;
mod stats;
mod thread;
mod warm_up;

use crate::adapters::CachedFile;
use crate::adapters::loader::{AdapterLoader, LoadEvent};
use crate::adapters::residency::{
    AdapterAction, DeviceMemory, LoadAction, Residency, UploadFailure,
};
use crate::guidance::MaskPool;
use crate::kv::BlockPool;
use crate::scheduler::{Prices, Scheduler, SchedulerConfig, SequenceMap, StepPlan};
use crate::telemetry::{EngineMetrics, Move, MoveEnd, Moves};
use commands::Request;
use handle::Command;
use lorikeet_compute::backend::batch::SequenceId;
use lorikeet_compute::backend::{Backend, BackendError, StepBatch, StepTicket, UploadDone};
use lorikeet_contract::RequestId;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use warm_up::WarmingUp;

pub use config::EngineConfig;
pub use handle::{EngineHandle, Revocation};
pub use places::Places;
pub use request::{EngineEvent, EngineRequest, FinishReason, RequestError, SubmitError, Usage};
pub use stats::{EngineState, EngineStats, KvUse, StepReport};
pub use thread::spawn;
pub use warm_up::WarmUpError;

/// Why the engine ended. Every request in flight has been told.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("the backend broke its contract: {0}")]
    Contract(&'static str),
    #[error("the adapter cache: {0}")]
    AdapterCache(#[from] std::io::Error),
    /// What the panic said may quote a prompt and goes nowhere; the process's hook logs where it was.
    #[error("a panic")]
    Panic,
}

/// A submitted step that has not been collected.
struct InFlight {
    plan: StepPlan,
    ticket: StepTicket,
    submitted: Instant,
}

pub struct Engine {
    config: EngineConfig,
    backend: Box<dyn Backend>,
    loader: Box<dyn AdapterLoader>,
    kv: BlockPool,
    scheduler: Scheduler,
    residency: Residency,
    pipeline_depth: usize,

    commands: mpsc::Receiver<Command>,
    stats: watch::Sender<EngineStats>,
    metrics: Arc<EngineMetrics>,
    moves: Moves,
    requests: SequenceMap<Request>,
    by_id: HashMap<RequestId, SequenceId>,
    next_sequence: u64,
    state: EngineState,

    warm_ups: Vec<WarmingUp>,
    step: u64,
    /// What the step collected last took; zero once it has been used.
    last_step: Duration,
    /// None until a request follows a grammar.
    masks: Option<MaskPool>,
    in_flight: VecDeque<InFlight>,
    /// The residency that the snapshot shows.
    reported_changes: Option<u64>,

    // Reused from step to step.
    spare_plans: Vec<StepPlan>,
    batch: StepBatch,
    seen_slots: Vec<bool>,
    load_events: Vec<LoadEvent>,
    uploads: Vec<UploadDone>,
    closed: Vec<SequenceId>,
}

impl Engine {
    fn new(
        config: EngineConfig,
        backend: Box<dyn Backend>,
        loader: Box<dyn AdapterLoader>,
        commands: mpsc::Receiver<Command>,
        stats: watch::Sender<EngineStats>,
        metrics: Arc<EngineMetrics>,
    ) -> Self {
        let capacity = backend.capacity();
        stats.send_modify(|stats| stats.capacity = capacity);
        let limits = config.scheduler;
        let max_rows = capacity.max_rows as usize;
        let memory =
            DeviceMemory { bytes: capacity.adapter_bytes, block_bytes: capacity.block_bytes };
        Self {
            kv: BlockPool::new(capacity.num_blocks, capacity.block_size)
                .keeping(border::least_blocks(&capacity, config.base.context_length)),
            scheduler: Scheduler::new(
                SchedulerConfig {
                    max_num_batched_tokens: limits.max_num_batched_tokens.min(max_rows),
                    ..limits
                },
                Prices::of(&config.base),
            ),
            residency: Residency::new(config.residency, memory, capacity.max_slots),
            pipeline_depth: capacity.pipeline_depth.max(1) as usize,
            config,
            backend,
            loader,
            commands,
            stats,
            metrics,
            moves: Moves::default(),
            requests: SequenceMap::default(),
            by_id: HashMap::new(),
            next_sequence: 0,
            state: EngineState::Running,
            warm_ups: Vec::new(),
            step: 0,
            last_step: Duration::ZERO,
            masks: None,
            in_flight: VecDeque::new(),
            reported_changes: None,
            spare_plans: Vec::new(),
            batch: StepBatch::default(),
            seen_slots: Vec::new(),
            load_events: Vec::new(),
            uploads: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// Takes over the files that the disk cache kept.
    fn restore(&mut self, files: Vec<CachedFile>, now: Instant) {
        for file in files {
            if !self.residency.restore(file, now) {
                self.loader.start(LoadAction::DropFile(file));
            }
        }
    }

    /// One round: takes in what has arrived, submits the next step if there is one, and commits
    /// the one that is due. True when a step was submitted or committed.
    fn step(&mut self, now: Instant) -> Result<bool, EngineError> {
        self.accept_commands(now);
        if matches!(self.state, EngineState::Stopped(_)) {
            return Ok(false);
        }
        self.accept_adapter_events(now)?;
        self.accept_masks(now);
        let mut plan = self.spare_plans.pop().unwrap_or_default();
        self.scheduler.move_adapters(now, &mut self.kv, &mut self.residency, &mut plan);
        if !plan.actions.is_empty() {
            self.perform(&mut plan.actions, now)?;
            // A device that shares host memory has them at once.
            self.accept_uploads(now)?;
        }
        self.scheduler.schedule(now, &mut self.kv, &mut self.residency, &mut plan);
        self.metrics.preemptions.add(plan.preempted.into());
        self.settle_warm_ups(now);
        for (sequence, ending) in plan.ended.drain(..) {
            self.finish(&sequence, ending, now);
        }
        let has_work = !plan.sequences.is_empty();
        if has_work {
            self.submit(plan, now)?;
        } else {
            self.spare_plans.push(plan);
        }
        let due = self.in_flight.len() >= self.pipeline_depth || !has_work;
        let collected = due && self.collect(now)?;
        self.publish();
        Ok(has_work || collected)
    }

    fn accept_adapter_events(&mut self, now: Instant) -> Result<(), EngineError> {
        let mut events = std::mem::take(&mut self.load_events);
        self.loader.poll(&mut events);
        for event in events.drain(..) {
            match event {
                LoadEvent::Fetched { key, result } => {
                    self.moved(Move::Fetch(key), (&result).into(), now);
                    self.residency.fetched(key, result, now);
                }
                LoadEvent::Read { key, result } => {
                    self.moved(Move::Read(key), (&result).into(), now);
                    let sized = result.map(|adapter| {
                        let device_bytes = self.backend.adapter_bytes(&adapter.header);
                        (adapter, device_bytes)
                    });
                    self.residency.read(key, sized, now);
                }
                LoadEvent::Dropped { key } => self.residency.dropped(key),
            }
        }
        self.load_events = events;
        self.accept_uploads(now)
    }

    fn accept_uploads(&mut self, now: Instant) -> Result<(), EngineError> {
        let mut uploads = std::mem::take(&mut self.uploads);
        self.backend.poll_uploads(&mut uploads);
        for UploadDone { slot, result } in uploads.drain(..) {
            let ended = upload_end(result)?;
            self.moved(Move::Upload(slot), (&ended).into(), now);
            self.residency.uploaded(slot, ended, now);
        }
        self.uploads = uploads;
        Ok(())
    }

    fn moved(&mut self, what: Move, end: MoveEnd, now: Instant) {
        self.moves.end(what, end, &self.metrics, now);
    }

    fn perform(
        &mut self,
        actions: &mut Vec<AdapterAction>,
        now: Instant,
    ) -> Result<(), EngineError> {
        for action in actions.drain(..) {
            match action {
                AdapterAction::Load(load) => {
                    match &load {
                        LoadAction::Fetch(m) => self.moves.begin(Move::Fetch(m.key), m.bytes, now),
                        LoadAction::Read(m) => self.moves.begin(Move::Read(m.key), m.bytes, now),
                        LoadAction::DropFile(_) => {}
                    }
                    self.loader.start(load);
                }
                AdapterAction::CancelFetch(key) => self.loader.cancel_fetch(key),
                AdapterAction::Borrow { blocks } => self.give_up_blocks(blocks)?,
                AdapterAction::Return { blocks } => self.take_back_blocks(blocks)?,
                AdapterAction::Evict(slot) => {
                    self.metrics.device_evictions.increment();
                    self.backend.evict(slot);
                }
                AdapterAction::Upload { slot, adapter } => {
                    let bytes = self.backend.adapter_bytes(&adapter.header);
                    self.moves.begin(Move::Upload(slot), bytes, now);
                    let begun = upload_end(self.backend.begin_upload(slot, adapter))?;
                    if begun.is_err() {
                        self.moved(Move::Upload(slot), (&begun).into(), now);
                        self.residency.uploaded(slot, begun, now);
                    }
                }
            }
        }
        Ok(())
    }

    fn publish(&mut self) {
        if self.state == EngineState::Draining && self.requests.is_empty() {
            self.state = EngineState::Drained;
        }
        let changes = self.residency.changes();
        let residency =
            (self.reported_changes != Some(changes)).then(|| Arc::new(self.residency.report()));
        self.reported_changes = Some(changes);
        let (total, cached) = (self.kv.num_blocks(), self.kv.cached());
        let used = total - self.kv.available();
        self.stats.send_modify(|stats| {
            if stats.state != self.state {
                stats.state = self.state.clone();
            }
            stats.running = self.scheduler.running();
            stats.waiting = self.scheduler.waiting();
            stats.kv = KvUse { total, used, cached };
            stats.rotations = self.residency.rotations();
            if let Some(residency) = residency {
                stats.residency = residency;
            }
        });
    }
}

/// A want of room is residency's to mend, an adapter's own fault is told to those who need it, and a
/// device error ends the engine.
fn upload_end(result: Result<(), BackendError>) -> Result<Result<(), UploadFailure>, BackendError> {
    match result {
        Err(BackendError::Device(reason)) => Err(BackendError::Device(reason)),
        Err(BackendError::NoRoomYet { .. } | BackendError::OutOfMemory { .. }) => {
            Ok(Err(UploadFailure::NoRoom))
        }
        Err(error @ BackendError::Adapter(_)) => Ok(Err(UploadFailure::Failed(error.to_string()))),
        Ok(()) => Ok(Ok(())),
    }
}

#[cfg(test)]
mod tests;
