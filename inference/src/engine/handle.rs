//! The bounded door between async code and the engine thread.

use super::places::{Places, Queue};
use super::request::{EngineRequest, SubmitError};
use super::stats::{EngineState, EngineStats};
use super::warm_up::{WarmUp, WarmUpError};
use crate::adapters::{AdapterKey, AdapterManifest, Pin};
use crate::share::TenantShare;
use crate::telemetry::EngineMetrics;
use lorikeet_contract::{KeyId, RequestId, TenantId};
use std::collections::HashSet;
use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

/// Room in the command channel beside one place for each request. When it is full, `cancel` is
/// dropped, `warm_up` is refused, and whatever else is told to the engine waits.
pub(super) const CONTROL_COMMANDS: usize = 1024;

/// Whose requests lose their access while they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    Key(KeyId),
    Tenant(TenantId),
}

impl Revocation {
    pub fn covers(self, tenant: TenantId, key: Option<KeyId>) -> bool {
        match self {
            Revocation::Key(revoked) => key == Some(revoked),
            Revocation::Tenant(revoked) => tenant == revoked,
        }
    }
}

pub(super) enum Command {
    Submit(Box<Submission>),
    Cancel(RequestId),
    Revoke(Revocation),
    WarmUp(WarmUp),
    Forget(AdapterKey),
    Retain(HashSet<AdapterKey>),
    Pin(Vec<Pin>),
    Drain,
    Shutdown,
}

/// A request on its way in, with its place among the requests that the engine holds.
pub(super) struct Submission {
    pub request: EngineRequest,
    pub submitted: Instant,
    pub place: Places,
}

/// Speaks to the engine from any thread or task. Clones share one engine.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    queue: Arc<Queue>,
    stats: watch::Receiver<EngineStats>,
    metrics: Arc<EngineMetrics>,
    thread: Thread,
}

impl EngineHandle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        max_requests: usize,
        stats: watch::Receiver<EngineStats>,
        metrics: Arc<EngineMetrics>,
        thread: Thread,
    ) -> Self {
        Self { commands, queue: Arc::new(Queue::new(max_requests)), stats, metrics, thread }
    }

    /// Hands a request over without waiting. Every accepted request ends with exactly one
    /// `Finished` or `Failed` event, unless its receiver is dropped first.
    pub fn try_submit(&self, request: EngineRequest) -> Result<(), SubmitError> {
        self.try_submit_at(request, Instant::now())
    }

    /// Room for `count` requests of a tenant, or for none of them.
    pub fn reserve(&self, tenant: TenantId, count: u32) -> Result<Places, SubmitError> {
        self.queue.reserve(tenant, count as usize)
    }

    /// As [`EngineHandle::try_submit`], in one of the reserved places.
    pub fn submit_reserved(
        &self,
        request: EngineRequest,
        places: &mut Places,
    ) -> Result<(), SubmitError> {
        let place = places.split_one().ok_or(SubmitError::QueueFull)?;
        self.submit(request, place, Instant::now())
    }

    pub(super) fn try_submit_at(
        &self,
        request: EngineRequest,
        submitted: Instant,
    ) -> Result<(), SubmitError> {
        let place = self.queue.reserve(request.tenant, 1)?;
        self.submit(request, place, submitted)
    }

    fn submit(
        &self,
        request: EngineRequest,
        place: Places,
        submitted: Instant,
    ) -> Result<(), SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if !self.stats.borrow().state.accepts() {
            return Err(SubmitError::Stopped);
        }
        let submission = Submission { request, submitted, place };
        self.commands.try_send(Command::Submit(Box::new(submission))).map_err(|e| match e {
            TrySendError::Full(_) => SubmitError::QueueFull,
            TrySendError::Closed(_) => SubmitError::Stopped,
        })?;
        self.thread.unpark();
        Ok(())
    }

    /// Ends a request; one that has ended or is not known is left alone. Dropping the receiver of
    /// its events does the same and cannot be lost in a full command channel.
    pub fn cancel(&self, request: RequestId) {
        let _ = self.commands.try_send(Command::Cancel(request));
        self.thread.unpark();
    }

    /// Ends the covered requests with [`RequestError::Revoked`](super::RequestError), those handed
    /// over before this call included. New ones are for the caller to refuse.
    pub async fn revoke(&self, revocation: Revocation) {
        self.send(Command::Revoke(revocation)).await;
    }

    /// Loads an adapter onto the device ahead of requests, and returns when it is there, with the time
    /// that took. The load goes on when the caller does not wait for it.
    pub async fn warm_up(
        &self,
        adapter: Arc<AdapterManifest>,
        share: TenantShare,
    ) -> Result<Duration, WarmUpError> {
        if !self.stats.borrow().state.accepts() {
            return Err(WarmUpError::Stopped);
        }
        let (reply, loaded) = oneshot::channel();
        let warm_up = WarmUp { adapter, share, reply };
        self.commands.try_send(Command::WarmUp(warm_up)).map_err(|e| match e {
            TrySendError::Full(_) => WarmUpError::QueueFull,
            TrySendError::Closed(_) => WarmUpError::Stopped,
        })?;
        self.thread.unpark();
        loaded.await.unwrap_or(Err(WarmUpError::Stopped))
    }

    /// The adapters that there are, told at the start: what the disk cache has of others is removed.
    pub async fn retain(&self, adapters: HashSet<AdapterKey>) {
        self.send(Command::Retain(adapters)).await;
    }

    /// Replaces the adapters that are loaded ahead and kept in memory, in this order while they fit.
    pub async fn pin(&self, pins: Vec<Pin>) {
        self.send(Command::Pin(pins)).await;
    }

    /// The adapter was deleted: requests under way keep it, and its bytes leave every tier when
    /// the last of them has ended.
    pub async fn forget(&self, adapter: AdapterKey) {
        self.send(Command::Forget(adapter)).await;
    }

    /// The latest snapshot, made after each step.
    pub fn stats(&self) -> EngineStats {
        self.stats.borrow().clone()
    }

    /// What has been counted since the start.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    /// Changes with each step. Readers may miss steps, never the last state.
    pub fn watch(&self) -> watch::Receiver<EngineStats> {
        self.stats.clone()
    }

    /// Accepts no more requests, and returns when those under way have ended.
    pub async fn drain(&self) {
        self.send(Command::Drain).await;
        self.until(|state| matches!(state, EngineState::Drained | EngineState::Stopped(_))).await;
    }

    /// Ends every request and the engine thread, and returns when it has stopped.
    pub async fn shutdown(&self) {
        self.send(Command::Shutdown).await;
        self.until(|state| matches!(state, EngineState::Stopped(_))).await;
    }

    async fn send(&self, command: Command) {
        // A closed channel means that the engine has stopped: nothing is left to tell it.
        let _ = self.commands.send(command).await;
        self.thread.unpark();
    }

    async fn until(&self, reached: impl Fn(&EngineState) -> bool) {
        let mut stats = self.stats.clone();
        // An error means that the engine thread is gone, and so its requests.
        let _ = stats.wait_for(|stats| reached(&stats.state)).await;
    }
}
