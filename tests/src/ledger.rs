//! Both ends of metering, read independently of the code under test's own reports: the finals in the
//! node's log directory and the rows in Postgres.

use crate::Demo;
use anyhow::{Context, Result, ensure};
use lorikeet_contract::link::{UsageKind, UsageRecord};
use prost::Message;
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long shipped usage may take to arrive once every part is back.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);

/// Completion tokens by request id.
pub type Finals = BTreeMap<String, u64>;

/// A pool as operators' pages have it: reads across tenants, writes nothing.
pub async fn operator_pool(demo: &Demo) -> Result<PgPool> {
    pool_as(demo, "lk_operator").await
}

pub async fn pool_as(demo: &Demo, role: &str) -> Result<PgPool> {
    let env = &demo.process("control-plane")?.env;
    let url = env.get("LORIKEET_DATABASE_URL").context("the control plane's database")?;
    let options = PgConnectOptions::from_str(url)?.username(role);
    Ok(PgPoolOptions::new().max_connections(2).connect_with(options).await?)
}

/// Finals in every segment under `dir`. The frame is
/// `len u32 | crc32 u32 | seq u64 | prev_hash 32 | payload`, read here on its own so that a fault in the
/// log's own reader cannot hide one in its writer. A torn tail ends a segment.
pub fn finals_in_log(dir: &Path) -> Result<Finals> {
    let mut finals = Finals::new();
    let mut segments: Vec<_> = std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    segments.sort();
    ensure!(!segments.is_empty(), "no segments in {}", dir.display());
    for segment in segments {
        let bytes = std::fs::read(&segment)?;
        let mut rest = &bytes[..];
        while let Some((payload, after)) = frame(rest) {
            let record = UsageRecord::decode(payload)?;
            if record.kind() == UsageKind::Final {
                let twice = finals.insert(record.request_id.clone(), record.completion_tokens);
                ensure!(twice.is_none(), "two finals of {}", record.request_id);
            }
            rest = after;
        }
    }
    Ok(finals)
}

fn frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let payload = bytes.get(48..48 + len)?;
    Some((payload, &bytes[48 + len..]))
}

/// What Postgres has; an id there twice is an error.
pub async fn events(pool: &PgPool) -> Result<Finals> {
    let rows = sqlx::query("select request_id, completion_tokens from usage_event")
        .fetch_all(pool)
        .await?;
    let mut events = Finals::new();
    for row in rows {
        let id: uuid::Uuid = row.try_get(0)?;
        let id = lorikeet_contract::RequestId::from_uuid(id).to_string();
        let tokens = u64::try_from(row.try_get::<i64, _>(1)?)?;
        ensure!(events.insert(id.clone(), tokens).is_none(), "request {id} is counted twice");
    }
    Ok(events)
}

/// Waits until Postgres holds exactly the finals of the log, then checks that the rollups are their sum.
pub async fn until_settled(pool: &PgPool, log: &Path) -> Result<Finals> {
    let started = Instant::now();
    loop {
        let (finals, events) = (finals_in_log(log)?, events(pool).await?);
        if finals == events {
            rollups_are_the_sum(pool).await?;
            return Ok(finals);
        }
        let missing: Vec<_> =
            finals.keys().filter(|id| !events.contains_key(*id)).take(5).collect();
        let extra: Vec<_> = events.keys().filter(|id| !finals.contains_key(*id)).take(5).collect();
        ensure!(
            started.elapsed() < ARRIVAL_LIMIT,
            "{} finals, {} events; not arrived {missing:?}, unknown to the log {extra:?}",
            finals.len(),
            events.len(),
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn rollups_are_the_sum(pool: &PgPool) -> Result<()> {
    let sums = "count(*)::bigint, coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(completion_tokens), 0)::bigint";
    let events = format!("select {sums} from usage_event");
    let rollups =
        "select coalesce(sum(requests), 0)::bigint, coalesce(sum(prompt_tokens), 0)::bigint,
                          coalesce(sum(completion_tokens), 0)::bigint from usage_hourly";
    let events: (i64, i64, i64) =
        sqlx::query_as(sqlx::AssertSqlSafe(events)).fetch_one(pool).await?;
    let rollups: (i64, i64, i64) = sqlx::query_as(rollups).fetch_one(pool).await?;
    ensure!(events == rollups, "events sum to {events:?}, rollups to {rollups:?}");
    Ok(())
}
