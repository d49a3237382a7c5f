//! One request's account: opened at admission, counted while it streams, closed once.

use super::LogError;
use super::log::Shared;
use super::writer::Command;
use crate::durable::unix_ms;
use lorikeet_contract::link::{FinishReason, UsageKind, UsageRecord};
use lorikeet_contract::{AdapterVersionId, KeyId, RequestId, TenantId, WeightsDigest};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// What is known of a request when it is admitted.
#[derive(Debug, Clone)]
pub struct Admission {
    pub request_id: RequestId,
    pub tenant_id: TenantId,
    pub key_id: KeyId,
    /// None: the base model.
    pub adapter_version_id: Option<AdapterVersionId>,
    pub base_weights_digest: WeightsDigest,
    pub prompt_tokens: u32,
}

impl Admission {
    pub(super) fn open_record(&self) -> UsageRecord {
        UsageRecord {
            kind: UsageKind::Open as i32,
            request_id: self.request_id.to_string(),
            tenant_id: self.tenant_id.to_string(),
            key_id: self.key_id.to_string(),
            source: "api".into(),
            adapter_version_id: self.adapter_version_id.map(|v| v.to_string()).unwrap_or_default(),
            base_weights_digest: self.base_weights_digest.0.to_vec(),
            prompt_tokens: self.prompt_tokens.into(),
            started_unix_ms: unix_ms(),
            ..UsageRecord::default()
        }
    }
}

/// Counts that the writer reads for progress records.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Accepted by the HTTP body.
    pub completion: AtomicU64,
    /// Of the prompt, found in the prefix cache.
    pub cached: AtomicU64,
    /// 0: none yet.
    pub first_token_unix_ms: AtomicI64,
}

impl Counts {
    pub fn write_to(&self, record: &mut UsageRecord) {
        record.completion_tokens = self.completion.load(Ordering::Acquire);
        record.cached_tokens = self.cached.load(Ordering::Acquire).min(record.prompt_tokens);
        record.first_token_unix_ms = self.first_token_unix_ms.load(Ordering::Acquire);
    }
}

/// Resolves when a record is on the disk.
#[must_use = "a record is durable only once this has resolved"]
pub struct Durable(pub(super) oneshot::Receiver<()>);

impl Durable {
    pub async fn wait(self) -> Result<(), LogError> {
        self.0.await.map_err(|_| LogError::Unwritable)
    }
}

/// The account of an admitted request. Dropped unfinished, it closes as cancelled with what was
/// delivered so far, so that no way out of a handler leaves a request open.
pub struct Meter {
    record: UsageRecord,
    counts: Arc<Counts>,
    log: Arc<Shared>,
    /// Room for the final in the writer's queue; None once it is used.
    permit: Option<OwnedSemaphorePermit>,
}

impl Meter {
    pub(super) fn new(
        record: UsageRecord,
        counts: Arc<Counts>,
        log: Arc<Shared>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { record, counts, log, permit: Some(permit) }
    }

    /// `completion_tokens` in all have been accepted by the HTTP body. Fails while the log cannot be
    /// written: then the caller ends the request and delivers nothing more.
    pub fn deliver(&self, completion_tokens: u32) -> Result<(), LogError> {
        if !self.log.is_writable() {
            return Err(LogError::Unwritable);
        }
        if completion_tokens > 0 {
            let first = &self.counts.first_token_unix_ms;
            let _ = first.compare_exchange(0, unix_ms(), Ordering::AcqRel, Ordering::Acquire);
        }
        self.counts.completion.store(completion_tokens.into(), Ordering::Release);
        Ok(())
    }

    /// So many tokens of the prompt came from the prefix cache.
    pub fn note_cached(&self, cached_tokens: u32) {
        self.counts.cached.store(cached_tokens.into(), Ordering::Release);
    }

    /// Closes the account with the tokens delivered so far.
    pub fn finish(mut self, reason: FinishReason) -> Durable {
        self.close(reason)
    }

    fn close(&mut self, reason: FinishReason) -> Durable {
        let (done, durable) = oneshot::channel();
        let Some(permit) = self.permit.take() else { return Durable(durable) };
        let mut record = std::mem::take(&mut self.record);
        self.counts.write_to(&mut record);
        finalize(&mut record, reason, unix_ms());
        self.log.send(Command::Final { record, done, permit });
        Durable(durable)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        drop(self.close(FinishReason::Cancelled));
    }
}

/// Turns a request's record into its final one. A failure of ours that delivered nothing is free.
pub(super) fn finalize(record: &mut UsageRecord, reason: FinishReason, now_unix_ms: i64) {
    record.kind = UsageKind::Final as i32;
    record.finish_reason = reason as i32;
    record.ended_unix_ms = now_unix_ms.max(record.started_unix_ms);
    let our_failure = matches!(reason, FinishReason::Error | FinishReason::Crashed);
    if our_failure && record.completion_tokens == 0 {
        record.prompt_tokens = 0;
        record.cached_tokens = 0;
    }
}
