//! Takes batches of usage records in: each durable record of a node's log reaches the ledger
//! exactly once, and the hourly sums are the sums of the events at every moment.

use super::last_used::LastUsed;
use super::ledger::{Known, Log, insert_events, quarantine_records};
use super::position::{Batch, Cursor, Standing, standing};
use super::record::{self, Event};
use crate::metrics::Metrics;
use lorikeet_contract::NodeId;
use lorikeet_contract::link::{MAX_USAGE_RECORDS, UsageAck, UsageBatch};
use sqlx::{PgConnection, PgPool, Row};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use time::{Date, OffsetDateTime};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often the times at which keys were last used are written.
const LAST_USED_EVERY: Duration = Duration::from_secs(10);

/// How often the partitions of this month and the next are made sure of.
const PARTITIONS_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("the batch names a node that is not the token's")]
    OtherNode,
    #[error("the batch is malformed: {0}")]
    Batch(&'static str),
    #[error("the batch starts at {first_seq}, but only {cursor} has arrived: send from {} on", cursor + 1)]
    Gap { first_seq: u64, cursor: u64 },
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Cheap to clone; clones share what is yet to be written of last uses.
#[derive(Clone)]
pub struct Ingest {
    pool: PgPool,
    last_used: Arc<LastUsed>,
    metrics: Arc<Metrics>,
}

impl Ingest {
    pub fn new(pool: PgPool, metrics: Arc<Metrics>) -> Self {
        Self { pool, last_used: Arc::default(), metrics }
    }

    /// Partitions and last uses, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut partitions = tokio::time::interval(PARTITIONS_EVERY);
        let mut last_used = tokio::time::interval(LAST_USED_EVERY);
        loop {
            let done = tokio::select! {
                () = shutdown.cancelled() => break,
                _ = partitions.tick() => self.ensure_partitions().await,
                _ = last_used.tick() => self.write_last_used().await,
            };
            if let Err(error) = done {
                // Without its partition a month's events go to the default one, and still count.
                tracing::warn!(%error, "the upkeep of the usage tables failed, it is tried again");
            }
        }
        if let Err(error) = self.write_last_used().await {
            tracing::warn!(%error, "when keys were last used could not be written at shutdown");
        }
    }

    /// Takes the batch in. The answer says up to where the log is in the database now, or why it
    /// goes no further.
    pub async fn ship(&self, node: NodeId, batch: UsageBatch) -> Result<UsageAck, IngestError> {
        let (log, batch) = checked(node, batch)?;
        let mut tx = self.pool.begin().await?;
        let (cursor, quarantined) = lock_cursor(&mut tx, log, batch.epoch).await?;
        if let Some(quarantine_reason) = quarantined {
            return Ok(UsageAck { cursor: cursor.seq, quarantine_reason });
        }
        let mut found = standing(&cursor, &batch);
        if found == Standing::Before && !matches_ingested(&mut tx, log, &batch).await? {
            found = Standing::Diverged("its requests are not those ingested at the same place");
        }
        let (known, next) = match found {
            Standing::Continues { known, next } => (known, next),
            Standing::Before => return Ok(acked(cursor.seq)),
            Standing::Gap => {
                let first_seq = batch.first_seq;
                return Err(IngestError::Gap { first_seq, cursor: cursor.seq });
            }
            Standing::Diverged(why) => {
                let quarantine_reason = quarantine_log(&mut tx, log, &cursor, why).await?;
                tx.commit().await?;
                return Ok(UsageAck { cursor: cursor.seq, quarantine_reason });
            }
        };
        let first_new = cursor.seq + 1;
        let events =
            insert_new(&mut tx, log, batch.epoch, first_new, &batch.records[known..]).await?;
        advance(&mut tx, log, &next).await?;
        tx.commit().await?;
        self.last_used.note(&events);
        self.metrics.usage_records.add((batch.records.len() - known) as u64);
        for event in &events {
            self.metrics.ingested(event.ended_at);
        }
        Ok(acked(next.seq))
    }

    /// Writes when keys were last used, as far as it is known here and not yet written.
    pub async fn write_last_used(&self) -> Result<(), sqlx::Error> {
        self.last_used.write(&self.pool).await
    }

    /// Makes sure of the partitions of this month and the next.
    pub async fn ensure_partitions(&self) -> Result<(), sqlx::Error> {
        let month = OffsetDateTime::now_utc().date().replace_day(1).unwrap_or(Date::MIN);
        let next = (month + time::Duration::days(32)).replace_day(1).unwrap_or(Date::MIN);
        for month in [month, next] {
            let mut tx = self.pool.begin().await?;
            // It locks the table for a moment: rather try again tomorrow than stop the ingest.
            sqlx::query("set local lock_timeout = '2s'").execute(&mut *tx).await?;
            sqlx::query("select ensure_usage_partition($1)").bind(month).execute(&mut *tx).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

/// Writes the records that are new, the first of them number `first_seq`; returns the events.
async fn insert_new(
    tx: &mut PgConnection,
    log: Log,
    epoch: i64,
    first_seq: u64,
    records: &[Vec<u8>],
) -> Result<Vec<Event>, sqlx::Error> {
    let mut events = Vec::new();
    let mut refused = Vec::new();
    for (seq, payload) in (first_seq..).zip(records) {
        match record::read(seq, payload) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => {}
            Err(reason) => refused.push((seq, reason)),
        }
    }
    let known = Known::read(tx, &events).await?;
    events.retain(|event| match known.refuses(event) {
        Some(reason) => {
            refused.push((event.seq.unsigned_abs(), reason.to_owned()));
            false
        }
        None => true,
    });
    insert_events(tx, log, epoch, &events).await?;
    let aside: Vec<_> = refused
        .into_iter()
        .map(|(seq, reason)| (seq as i64, &records[(seq - first_seq) as usize], reason))
        .collect();
    quarantine_records(tx, log, epoch, &aside).await?;
    Ok(events)
}

fn acked(cursor: u64) -> UsageAck {
    UsageAck { cursor, quarantine_reason: String::new() }
}

fn checked(node: NodeId, batch: UsageBatch) -> Result<(Log, Batch), IngestError> {
    if batch.node_id != node.to_string() {
        return Err(IngestError::OtherNode);
    }
    if batch.records.len() > MAX_USAGE_RECORDS {
        return Err(IngestError::Batch("more records than a batch may hold"));
    }
    let last = batch.first_seq.saturating_add(batch.records.len() as u64);
    if batch.first_seq == 0 || i64::try_from(last).is_err() {
        return Err(IngestError::Batch("record numbers start at 1 and fit 63 bits"));
    }
    let id = Uuid::try_parse(&batch.log_id).map_err(|_| IngestError::Batch("log_id is no uuid"))?;
    let prev_hash =
        batch.prev_hash.try_into().map_err(|_| IngestError::Batch("prev_hash is not 32 bytes"))?;
    let epoch =
        i64::try_from(batch.epoch).map_err(|_| IngestError::Batch("the epoch is out of range"))?;
    let (first_seq, records) = (batch.first_seq, batch.records);
    Ok((Log { node: node.as_uuid(), id }, Batch { epoch, first_seq, prev_hash, records }))
}

/// The cursor, locked until the transaction ends: batches of one log are taken one by one.
async fn lock_cursor(
    tx: &mut PgConnection,
    log: Log,
    epoch: i64,
) -> Result<(Cursor, Option<String>), sqlx::Error> {
    let start = Cursor::start(epoch);
    sqlx::query(
        "insert into usage_cursor (node_id, log_id, epoch, seq, chain) values ($1, $2, $3, 0, $4)
         on conflict do nothing",
    )
    .bind(log.node)
    .bind(log.id)
    .bind(epoch)
    .bind(&start.chain[..])
    .execute(&mut *tx)
    .await?;
    let row = sqlx::query(
        "select epoch, seq, chain, quarantine_reason from usage_cursor
         where node_id = $1 and log_id = $2 for update",
    )
    .bind(log.node)
    .bind(log.id)
    .fetch_one(tx)
    .await?;
    let decode = |e: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(e);
    let cursor = Cursor {
        epoch: row.try_get("epoch")?,
        seq: u64::try_from(row.try_get::<i64, _>("seq")?).map_err(|e| decode(e.into()))?,
        chain: row.try_get::<&[u8], _>("chain")?.try_into().map_err(|e| decode(Box::new(e)))?,
    };
    Ok((cursor, row.try_get("quarantine_reason")?))
}

async fn advance(tx: &mut PgConnection, log: Log, next: &Cursor) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update usage_cursor set epoch = $3, seq = $4, chain = $5, updated_at = now()
         where node_id = $1 and log_id = $2",
    )
    .bind(log.node)
    .bind(log.id)
    .bind(next.epoch)
    .bind(next.seq as i64)
    .bind(&next.chain[..])
    .execute(tx)
    .await?;
    Ok(())
}

/// For a batch before the cursor: whether each of its events that was ingested is the same one.
/// A clone whose numbers are behind would else be told that its records have arrived.
async fn matches_ingested(
    tx: &mut PgConnection,
    log: Log,
    batch: &Batch,
) -> Result<bool, sqlx::Error> {
    let last = batch.first_seq + batch.records.len() as u64;
    let ingested: HashMap<i64, Uuid> = sqlx::query_as(
        "select seq, request_id from usage_event
         where node_id = $1 and log_id = $2 and seq >= $3 and seq < $4",
    )
    .bind(log.node)
    .bind(log.id)
    .bind(batch.first_seq as i64)
    .bind(last as i64)
    .fetch_all(tx)
    .await?
    .into_iter()
    .collect();
    let sent: HashMap<i64, Uuid> = (batch.first_seq..)
        .zip(&batch.records)
        .filter_map(|(seq, payload)| record::read(seq, payload).ok().flatten())
        .map(|event| (event.seq, event.request_id))
        .collect();
    Ok(ingested.iter().all(|(seq, request)| sent.get(seq) == Some(request)))
}

/// Marks the whole log: from here on neither the clone's tail nor the original's is billed. Both
/// stay in their nodes' logs until an operator has decided.
async fn quarantine_log(
    tx: &mut PgConnection,
    log: Log,
    cursor: &Cursor,
    why: &str,
) -> Result<String, sqlx::Error> {
    let reason = format!(
        "usage log {} of node {} stopped at record {}: {why}. The log was cloned or damaged; \
         an operator must decide which copy is right",
        log.id,
        NodeId::from_uuid(log.node),
        cursor.seq
    );
    sqlx::query(
        "update usage_cursor set quarantined_at = now(), quarantine_reason = $3
         where node_id = $1 and log_id = $2",
    )
    .bind(log.node)
    .bind(log.id)
    .bind(&reason)
    .execute(tx)
    .await?;
    tracing::error!(reason, "a usage log is quarantined");
    Ok(reason)
}
