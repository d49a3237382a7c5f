//! Sends durable records to the control plane, at least once each, for as long as it takes.

use super::cursor::Cursor;
use super::reader::{Batch, Reader};
use super::{LogError, UsageLog};
use crate::durable::unix_ms;
use crate::link::{Backoff, Uplink};
use lorikeet_contract::link::{USAGE_CURSOR_METADATA, UsageAck, UsageBatch};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Status;

const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// After the stop, how long the last records may take to reach the control plane.
const LAST_SHIPMENT: Duration = Duration::from_secs(5);

/// Why shipping stopped for good. The node goes on serving and keeps its records.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    #[error("the control plane put this usage log in quarantine: {0}")]
    Quarantined(String),
    #[error(
        "the control plane has this log's records up to {cursor}, which does not fit with {first_seq} \
         being the next to ship: records are missing on one side"
    )]
    Unbridgeable { cursor: u64, first_seq: u64 },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("reading the usage log failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Why a batch was not taken.
enum Refusal {
    /// The control plane has less than was thought: up to this record.
    Gap(u64),
    NotNow(Status),
}

impl Refusal {
    fn of(status: Status) -> Self {
        let cursor = status.metadata().get(USAGE_CURSOR_METADATA);
        match cursor.and_then(|value| value.to_str().ok()?.parse().ok()) {
            Some(cursor) => Self::Gap(cursor),
            None => Self::NotNow(status),
        }
    }
}

pub struct Shipper {
    log: Arc<UsageLog>,
    uplink: Uplink,
    acknowledged: u64,
    /// Locked by one blocking task at a time.
    place: Arc<Mutex<Place>>,
}

/// What shipping keeps on the disk and reads from it.
struct Place {
    cursor: Cursor,
    reader: Reader,
}

impl Shipper {
    pub fn new(log: Arc<UsageLog>, uplink: Uplink) -> Result<Self, LogError> {
        let place = Place { cursor: Cursor::load(log.dir())?, reader: Reader::new(log.dir()) };
        let acknowledged = place.cursor.acknowledged();
        log.note_acknowledged(acknowledged);
        Ok(Self { log, uplink, acknowledged, place: Arc::new(Mutex::new(place)) })
    }

    /// Ships until `stop`, then what is durable by then, for [`LAST_SHIPMENT`] at most and without
    /// waiting for a control plane that is away. Records that are not acknowledged are shipped by the
    /// next start.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), ShipError> {
        let mut too_late = pin!(async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_SHIPMENT).await;
        });
        let mut durable = self.log.durable_seq();
        let mut backoff = Backoff::default();
        loop {
            let durable_seq = *durable.borrow_and_update();
            if durable_seq <= self.acknowledged {
                if stop.is_cancelled() {
                    return Ok(());
                }
                tokio::select! {
                    () = stop.cancelled() => {}
                    changed = durable.changed() => if changed.is_err() { return Ok(()) },
                }
                continue;
            }
            let first_seq = self.acknowledged + 1;
            let batch = self.on_disk(move |p| p.reader.batch(first_seq, durable_seq)).await?;
            let sent = tokio::select! {
                sent = self.send(batch) => sent,
                () = &mut too_late => Err(Refusal::NotNow(Status::deadline_exceeded("no answer"))),
            };
            match sent {
                Ok(ack) => {
                    backoff.reset();
                    self.acknowledge(ack, first_seq).await?;
                }
                Err(Refusal::Gap(cursor)) => self.go_back(cursor, first_seq).await?,
                Err(Refusal::NotNow(status)) => {
                    if stop.is_cancelled() {
                        tracing::warn!(first_seq, code = ?status.code(),
                            "the last usage records stay here until the next start ships them");
                        return Ok(());
                    }
                    if backoff.is_fresh() {
                        tracing::warn!(code = ?status.code(), reason = status.message(),
                            first_seq, "usage is not shipped for now, records are kept");
                    }
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(backoff.next_wait()) => {}
                    }
                }
            }
        }
    }

    async fn send(&self, batch: Batch) -> Result<UsageAck, Refusal> {
        let identity = self.log.identity();
        let mut request = tonic::Request::new(UsageBatch {
            node_id: self.uplink.node_id().to_string(),
            log_id: identity.log_id.to_string(),
            epoch: identity.epoch,
            first_seq: batch.first_seq,
            records: batch.payloads,
            prev_hash: batch.prev_hash.to_vec(),
        });
        request.set_timeout(CALL_TIMEOUT);
        let mut client = self.uplink.client();
        let call = tokio::time::timeout(CALL_TIMEOUT, client.ship_usage(request));
        match call.await {
            Ok(Ok(ack)) => Ok(ack.into_inner()),
            Ok(Err(status)) => Err(Refusal::of(status)),
            Err(_) => Err(Refusal::NotNow(Status::deadline_exceeded("no answer"))),
        }
    }

    async fn acknowledge(&mut self, ack: UsageAck, first_seq: u64) -> Result<(), ShipError> {
        if !ack.quarantine_reason.is_empty() {
            return Err(ShipError::Quarantined(ack.quarantine_reason));
        }
        // Past the batch when the cursor kept here was lost; never past the log's own end.
        let end = *self.log.durable_seq().borrow();
        if !(first_seq..=end).contains(&ack.cursor) {
            return Err(ShipError::Unbridgeable { cursor: ack.cursor, first_seq });
        }
        self.move_to(ack.cursor).await
    }

    /// The control plane's database was restored: it needs again what it had acknowledged.
    async fn go_back(&mut self, cursor: u64, first_seq: u64) -> Result<(), ShipError> {
        if cursor >= self.acknowledged {
            return Err(ShipError::Unbridgeable { cursor, first_seq });
        }
        tracing::warn!(cursor, first_seq, "the control plane lost usage records: shipping again");
        self.move_to(cursor).await
    }

    async fn move_to(&mut self, cursor: u64) -> Result<(), ShipError> {
        self.on_disk(move |place| place.cursor.set(cursor, unix_ms())).await?;
        self.acknowledged = cursor;
        self.log.note_acknowledged(cursor);
        Ok(())
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Place) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, ShipError> {
        let place = self.place.clone();
        let task = tokio::task::spawn_blocking(move || {
            work(&mut place.lock().unwrap_or_else(PoisonError::into_inner))
        });
        Ok(task.await??)
    }
}
