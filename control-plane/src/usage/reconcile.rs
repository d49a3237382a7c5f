//! Whether the books agree: the events of a stretch of time and its hourly sums, and where each
//! node's log stands.

use super::queries::Sums;
use lorikeet_contract::NodeId;
use serde::Serialize;
use sqlx::{FromRow, PgConnection, Row};
use time::serde::rfc3339;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// The events of this long are summed again: bounded work, whatever the ledger's age.
pub const WINDOW: Duration = Duration::hours(48);

/// Up to where one log has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogCursor {
    pub node_id: NodeId,
    /// Empty when the node has shipped but never attached.
    pub node: String,
    pub log_id: Uuid,
    pub epoch: i64,
    pub seq: i64,
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
    /// Why nothing more is taken from this log.
    pub quarantine_reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reconciliation {
    /// Events and sums are of the hours since.
    #[serde(with = "rfc3339")]
    pub since: OffsetDateTime,
    pub events: Sums,
    pub hourly: Sums,
    pub cursors: Vec<LogCursor>,
    /// Records kept aside because they could not be billed; of all time.
    pub quarantined_records: i64,
}

impl Reconciliation {
    /// True when nothing needs an operator.
    pub fn agrees(&self) -> bool {
        self.events == self.hourly
            && self.quarantined_records == 0
            && self.cursors.iter().all(|cursor| cursor.quarantine_reason.is_none())
    }
}

/// Needs an operator's transaction.
pub async fn reconcile(
    tx: &mut PgConnection,
    now: OffsetDateTime,
) -> Result<Reconciliation, sqlx::Error> {
    let since = now - WINDOW;
    let since = since.truncate_to_hour();
    // One statement, hence one snapshot: batches that arrive meanwhile are in both or in neither.
    let both = sqlx::query(
        "select 'event' as book, count(*) as requests,
           coalesce(sum(prompt_tokens), 0)::bigint as prompt_tokens,
           coalesce(sum(cached_tokens), 0)::bigint as cached_tokens,
           coalesce(sum(completion_tokens), 0)::bigint as completion_tokens
         from usage_event where ended_at >= $1
         union all
         select 'hourly', coalesce(sum(requests), 0)::bigint,
           coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(cached_tokens), 0)::bigint,
           coalesce(sum(completion_tokens), 0)::bigint
         from usage_hourly where hour >= $1
         order by book",
    )
    .bind(since)
    .fetch_all(&mut *tx)
    .await?;
    let [events, hourly] = &both[..] else { return Err(sqlx::Error::RowNotFound) };
    Ok(Reconciliation {
        since,
        events: Sums::from_row(events)?,
        hourly: Sums::from_row(hourly)?,
        cursors: cursors(tx).await?,
        quarantined_records: sqlx::query_scalar("select count(*) from usage_quarantine")
            .fetch_one(tx)
            .await?,
    })
}

async fn cursors(tx: &mut PgConnection) -> Result<Vec<LogCursor>, sqlx::Error> {
    sqlx::query(
        "select c.node_id, coalesce(n.name, '') as node, c.log_id, c.epoch, c.seq, c.updated_at,
           c.quarantine_reason
         from usage_cursor c left join node n on n.id = c.node_id
         order by node, c.updated_at desc",
    )
    .fetch_all(tx)
    .await?
    .iter()
    .map(|row| {
        Ok(LogCursor {
            node_id: NodeId::from_uuid(row.try_get("node_id")?),
            node: row.try_get("node")?,
            log_id: row.try_get("log_id")?,
            epoch: row.try_get("epoch")?,
            seq: row.try_get("seq")?,
            updated_at: row.try_get("updated_at")?,
            quarantine_reason: row.try_get("quarantine_reason")?,
        })
    })
    .collect()
}
