//! Takes batches of usage records in: each durable record of a node's log reaches the ledger
//! exactly once, and the hourly sums are the sums of the events at every moment.

use super::position::{Batch, Cursor, Standing, standing};
use super::record::{self, Event};
use lorikeet_contract::NodeId;
use lorikeet_contract::link::{MAX_USAGE_RECORDS, UsageAck, UsageBatch};
use sqlx::{PgConnection, PgPool, Row};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
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
    last_used: Arc<Mutex<HashMap<Uuid, OffsetDateTime>>>,
}

/// A log's identity.
#[derive(Debug, Clone, Copy)]
struct Log {
    node: Uuid,
    id: Uuid,
}

impl Ingest {
    pub fn new(pool: PgPool) -> Self {
        Self { pool, last_used: Arc::default() }
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
            self.insert(&mut tx, log, batch.epoch, first_new, &batch.records[known..]).await?;
        advance(&mut tx, log, &next).await?;
        tx.commit().await?;
        self.note_last_used(&events);
        Ok(acked(next.seq))
    }

    async fn insert(
        &self,
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

    fn note_last_used(&self, events: &[Event]) {
        let mut last_used = self.last_used.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            if let Some(key) = event.key_id {
                let at = last_used.entry(key).or_insert(event.ended_at);
                *at = event.ended_at.max(*at);
            }
        }
    }

    /// Writes when keys were last used. Keys at once, in one order, so that two writers never
    /// wait for each other in a ring. Bounded by the number of keys; what fails to be written is
    /// kept for the next time.
    pub async fn write_last_used(&self) -> Result<(), sqlx::Error> {
        let taken = {
            let mut last_used = self.last_used.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *last_used)
        };
        if taken.is_empty() {
            return Ok(());
        }
        let (keys, times): (Vec<_>, Vec<_>) = taken.iter().map(|(k, t)| (*k, *t)).unzip();
        let written = sqlx::query(
            "with used as (select * from unnest($1::uuid[], $2::timestamptz[]) as u (id, at)),
             locked as (select k.id from api_key k join used using (id) order by k.id for no key update of k)
             update api_key k set last_used_at = greatest(k.last_used_at, used.at)
             from used join locked using (id) where k.id = used.id",
        )
        .bind(keys)
        .bind(times)
        .execute(&self.pool)
        .await;
        if let Err(error) = written {
            let mut last_used = self.last_used.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, time) in taken {
                let at = last_used.entry(key).or_insert(time);
                *at = time.max(*at);
            }
            return Err(error);
        }
        Ok(())
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

/// Keeps records aside, whole, with the reason why each cannot be billed.
async fn quarantine_records(
    tx: &mut PgConnection,
    log: Log,
    epoch: i64,
    records: &[(i64, &Vec<u8>, String)],
) -> Result<(), sqlx::Error> {
    let Some((seq, _, reason)) = records.first() else { return Ok(()) };
    tracing::error!(node = %NodeId::from_uuid(log.node), log = %log.id, count = records.len(),
                    first = seq, reason, "usage records cannot be billed, they are kept aside");
    // A reason may quote its record, and Postgres takes no NUL.
    let printable = |reason: &str| reason.chars().filter(|c| !c.is_control()).collect::<String>();
    sqlx::query(
        "insert into usage_quarantine (node_id, log_id, epoch, seq, record, reason)
         select $1, $2, $3, q.* from unnest($4::bigint[], $5::bytea[], $6::text[]) as q
         on conflict do nothing",
    )
    .bind(log.node)
    .bind(log.id)
    .bind(epoch)
    .bind(records.iter().map(|(seq, ..)| *seq).collect::<Vec<_>>())
    .bind(records.iter().map(|(_, payload, _)| *payload).collect::<Vec<_>>())
    .bind(records.iter().map(|(.., reason)| printable(reason)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Which of the rows that a batch refers to there are, and whose.
struct Known {
    tenants: HashSet<Uuid>,
    keys: HashMap<Uuid, Uuid>,
    versions: HashMap<Uuid, Uuid>,
}

impl Known {
    async fn read(tx: &mut PgConnection, events: &[Event]) -> Result<Self, sqlx::Error> {
        let ids = |of: fn(&Event) -> Option<Uuid>| -> Vec<Uuid> {
            events.iter().filter_map(of).collect::<HashSet<_>>().into_iter().collect()
        };
        let tenants = sqlx::query_scalar("select id from tenant where id = any($1)")
            .bind(ids(|e| Some(e.tenant_id)))
            .fetch_all(&mut *tx)
            .await?;
        let keys = sqlx::query_as("select id, tenant_id from api_key where id = any($1)")
            .bind(ids(|e| e.key_id))
            .fetch_all(&mut *tx)
            .await?;
        let versions =
            sqlx::query_as("select id, tenant_id from adapter_version where id = any($1)")
                .bind(ids(|e| e.adapter_version_id))
                .fetch_all(&mut *tx)
                .await?;
        Ok(Self {
            tenants: tenants.into_iter().collect(),
            keys: keys.into_iter().collect(),
            versions: versions.into_iter().collect(),
        })
    }

    fn refuses(&self, event: &Event) -> Option<&'static str> {
        let owned = |owners: &HashMap<Uuid, Uuid>, id: Option<Uuid>| {
            id.is_none_or(|id| owners.get(&id) == Some(&event.tenant_id))
        };
        if !self.tenants.contains(&event.tenant_id) {
            return Some("its tenant is unknown here");
        }
        if !owned(&self.keys, event.key_id) {
            return Some("its key is not one of its tenant");
        }
        if !owned(&self.versions, event.adapter_version_id) {
            return Some("its adapter version is not one of its tenant");
        }
        None
    }
}

/// Inserts the events and adds exactly those inserted to the hourly sums, in one statement: the
/// two cannot part. Sums are touched in key order, so that batches never deadlock.
async fn insert_events(
    tx: &mut PgConnection,
    log: Log,
    epoch: i64,
    events: &[Event],
) -> Result<(), sqlx::Error> {
    if events.is_empty() {
        return Ok(());
    }
    macro_rules! column {
        ($field:ident) => {
            events.iter().map(|e| e.$field.clone()).collect::<Vec<_>>()
        };
    }
    let bases: Vec<_> =
        events.iter().map(|e| e.base_weights_digest.map(|d| d.0.to_vec())).collect();
    let inserted: i64 = sqlx::query_scalar(
        "with inserted as (
           insert into usage_event (node_id, log_id, epoch, seq, request_id, tenant_id, key_id,
             adapter_version_id, base_weights_digest, prompt_tokens, cached_tokens,
             completion_tokens, price_book_version, source, finish_reason, started_at,
             first_token_at, ended_at)
           select $1, $2, $3, e.* from unnest($4::bigint[], $5::uuid[], $6::uuid[], $7::uuid[],
             $8::uuid[], $9::bytea[], $10::bigint[], $11::bigint[], $12::bigint[], $13::int[],
             $14::text[], $15::text[], $16::timestamptz[], $17::timestamptz[],
             $18::timestamptz[]) as e
           on conflict do nothing
           returning tenant_id, ended_at, adapter_version_id, key_id, prompt_tokens,
                     cached_tokens, completion_tokens
         ), summed as (
           insert into usage_hourly as h (tenant_id, hour, adapter_version_id, key_id, requests,
             prompt_tokens, cached_tokens, completion_tokens)
           select tenant_id, date_trunc('hour', ended_at, 'UTC') as hour,
             coalesce(adapter_version_id, $19) as version, coalesce(key_id, $19) as key, count(*),
             sum(prompt_tokens)::bigint, sum(cached_tokens)::bigint, sum(completion_tokens)::bigint
           from inserted group by 1, 2, 3, 4 order by 1, 2, 3, 4
           on conflict (tenant_id, hour, adapter_version_id, key_id) do update set
             requests = h.requests + excluded.requests,
             prompt_tokens = h.prompt_tokens + excluded.prompt_tokens,
             cached_tokens = h.cached_tokens + excluded.cached_tokens,
             completion_tokens = h.completion_tokens + excluded.completion_tokens,
             revision = h.revision + 1
         )
         select count(*) from inserted",
    )
    .bind(log.node)
    .bind(log.id)
    .bind(epoch)
    .bind(column!(seq))
    .bind(column!(request_id))
    .bind(column!(tenant_id))
    .bind(column!(key_id))
    .bind(column!(adapter_version_id))
    .bind(bases)
    .bind(column!(prompt_tokens))
    .bind(column!(cached_tokens))
    .bind(column!(completion_tokens))
    .bind(column!(price_book_version))
    .bind(column!(source))
    .bind(column!(finish_reason))
    .bind(column!(started_at))
    .bind(column!(first_token_at))
    .bind(column!(ended_at))
    .bind(Uuid::nil())
    .fetch_one(tx)
    .await?;
    let expected = events.len() as i64;
    if inserted != expected {
        tracing::error!(node = %NodeId::from_uuid(log.node), log = %log.id, inserted, expected,
                        "the ledger held events past their log's cursor; they count once");
    }
    Ok(())
}
