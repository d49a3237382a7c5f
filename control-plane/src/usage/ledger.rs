//! The rows of a batch: events with their hourly sums, and what is kept aside.

use super::record::Event;
use lorikeet_contract::NodeId;
use sqlx::PgConnection;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// A log's identity.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    pub node: Uuid,
    pub id: Uuid,
}

/// Keeps records aside, whole, with the reason why each cannot be billed.
pub async fn quarantine_records(
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
pub struct Known {
    tenants: HashSet<Uuid>,
    keys: HashMap<Uuid, Uuid>,
    versions: HashMap<Uuid, Uuid>,
}

impl Known {
    pub async fn read(tx: &mut PgConnection, events: &[Event]) -> Result<Self, sqlx::Error> {
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

    /// Why the event cannot be attributed.
    pub fn refuses(&self, event: &Event) -> Option<&'static str> {
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
pub async fn insert_events(
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
