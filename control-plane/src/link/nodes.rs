//! The rows kept of each node: who is connected, what it has acknowledged, what it refuses.
//!
//! Every statement names the connection: a stream that was replaced, here or in another process,
//! changes nothing and learns of it from [`Still::Replaced`].

use lorikeet_contract::link::{Hello, Rejection};
use lorikeet_contract::{BaseModelSpec, NodeId};
use serde_json::Value;
use sqlx::{PgPool, Row};
use uuid::Uuid;

/// A node not heard of for this long is not counted as connected: the process that held its
/// stream may have died without a word. Longer than the silence after which a live process closes
/// a stream.
const STALE_S: f64 = 45.0;

/// Characters kept of a text that a node sends.
const MAX_TEXT: usize = 500;

/// One stream of one node.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    pub node: NodeId,
    pub id: Uuid,
}

/// Whether a connection is still its node's newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Still {
    Current,
    Replaced,
}

impl Still {
    fn of(rows: u64) -> Self {
        if rows == 0 { Self::Replaced } else { Self::Current }
    }
}

/// Records that the node is connected through `connection`. False when an operator disabled it.
pub async fn attached(
    pool: &PgPool,
    connection: Connection,
    hello: &Hello,
    base: &BaseModelSpec,
    held_revision: u64,
) -> Result<bool, sqlx::Error> {
    let spec = serde_json::to_value(base).map_err(|e| sqlx::Error::Encode(e.into()))?;
    let mut tx = pool.begin().await?;
    sqlx::query(
        "insert into base_model (weights_digest, id, spec) values ($1, $2, $3)
         on conflict (weights_digest) do update
           set id = excluded.id, spec = excluded.spec, last_seen_at = now()",
    )
    .bind(&base.weights_digest.0[..])
    .bind(text(&base.id))
    .bind(&spec)
    .execute(&mut *tx)
    .await?;
    let row = sqlx::query(
        "insert into node as n (id, name, cp_epoch, acked_revision, revocation_seq, connected,
                                connection_id, base_model, api_base_url, backend, software_version)
         values ($1, $2, $3, $4, $5, true, $6, $7, $8, $9, $10)
         on conflict (id) do update set
           name = excluded.name, cp_epoch = excluded.cp_epoch,
           acked_revision = excluded.acked_revision, revocation_seq = excluded.revocation_seq,
           connected = n.disabled_at is null, connection_id = excluded.connection_id,
           base_model = excluded.base_model, api_base_url = excluded.api_base_url,
           backend = excluded.backend, software_version = excluded.software_version,
           last_seen_at = now()
         returning disabled_at is null as enabled",
    )
    .bind(connection.node.as_uuid())
    .bind(text(&hello.name))
    .bind(bigint(hello.cp_epoch))
    .bind(bigint(held_revision))
    .bind(bigint(hello.revocation_seq))
    .bind(connection.id)
    .bind(&spec)
    .bind(text(&hello.api_base_url))
    .bind(text(&hello.backend))
    .bind(text(&hello.software_version))
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    row.try_get("enabled")
}

/// A sign of life.
pub async fn seen(pool: &PgPool, connection: Connection) -> Result<Still, sqlx::Error> {
    let done = sqlx::query(
        "update node set connected = true, last_seen_at = now()
         where id = $1 and connection_id = $2 and disabled_at is null",
    )
    .bind(connection.node.as_uuid())
    .bind(connection.id)
    .execute(pool)
    .await?;
    Ok(Still::of(done.rows_affected()))
}

/// The stream ended. Says nothing of a newer one of the same node.
pub async fn detached(pool: &PgPool, connection: Connection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update node set connected = false, connection_id = null
         where id = $1 and connection_id = $2",
    )
    .bind(connection.node.as_uuid())
    .bind(connection.id)
    .execute(pool)
    .await?;
    Ok(())
}

/// What a node has applied, and what of it it cannot use.
#[derive(Debug)]
pub struct Applied {
    pub cp_epoch: u64,
    pub revision: u64,
    pub rejected: Vec<Rejection>,
    /// True after a snapshot: what is not rejected now is rejected no more.
    pub whole: bool,
}

pub async fn applied(
    pool: &PgPool,
    connection: Connection,
    applied: &Applied,
) -> Result<Still, sqlx::Error> {
    let node = connection.node.as_uuid();
    let revision = bigint(applied.revision);
    let mut tx = pool.begin().await?;
    let done = sqlx::query(
        "update node set cp_epoch = $3, acked_revision = $4, last_seen_at = now()
         where id = $1 and connection_id = $2",
    )
    .bind(node)
    .bind(connection.id)
    .bind(bigint(applied.cp_epoch))
    .bind(revision)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(Still::Replaced);
    }
    // A rejection ends when the resource has changed since and is not rejected again.
    sqlx::query(
        "delete from node_rejection r where r.node_id = $1 and ($2 or exists
           (select from manifest_change c where c.kind = r.kind and c.id = r.resource_id
              and c.revision > r.revision and c.revision <= $3))",
    )
    .bind(node)
    .bind(applied.whole)
    .bind(revision)
    .execute(&mut *tx)
    .await?;
    let rejected = &applied.rejected;
    if !rejected.is_empty() {
        // A node that names a resource twice would touch a row twice in one statement.
        sqlx::query(
            "insert into node_rejection (node_id, kind, resource_id, reason, revision)
             select distinct on (kind, id) $1, kind, id, reason, $2
             from unnest($3::int[], $4::text[], $5::text[]) as x (kind, id, reason)
             on conflict (node_id, kind, resource_id) do update
               set reason = excluded.reason, revision = excluded.revision, at = now()",
        )
        .bind(node)
        .bind(revision)
        .bind(rejected.iter().map(|r| r.kind).collect::<Vec<_>>())
        .bind(rejected.iter().map(|r| text(&r.id)).collect::<Vec<_>>())
        .bind(rejected.iter().map(|r| text(&r.reason)).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(Still::Current)
}

/// The node has applied the deny-set up to `seq`.
pub async fn revoked(
    pool: &PgPool,
    connection: Connection,
    seq: u64,
) -> Result<Still, sqlx::Error> {
    let done = sqlx::query(
        "update node set revocation_seq = $3, last_seen_at = now()
         where id = $1 and connection_id = $2",
    )
    .bind(connection.node.as_uuid())
    .bind(connection.id)
    .bind(bigint(seq))
    .execute(pool)
    .await?;
    Ok(Still::of(done.rows_affected()))
}

pub async fn resident(
    pool: &PgPool,
    connection: Connection,
    report: &Value,
) -> Result<Still, sqlx::Error> {
    let done = sqlx::query(
        "update node set residency = $3, last_seen_at = now()
         where id = $1 and connection_id = $2",
    )
    .bind(connection.node.as_uuid())
    .bind(connection.id)
    .bind(report)
    .execute(pool)
    .await?;
    Ok(Still::of(done.rows_affected()))
}

/// Counts no longer as connected whatever has not been heard of. Its next sign of life undoes it.
pub async fn sweep_stale(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "update node set connected = false
         where connected and last_seen_at < now() - make_interval(secs => $1)",
    )
    .bind(STALE_S)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Moves verified versions on: to `ready` when every connected node has acknowledged them and
/// none refuses, to `failed` with a node's reason when every one refuses. Safe to repeat, and
/// from several processes at once. Returns how many versions moved.
///
/// A version that some nodes refuse and others serve stays `verified`: operators see which.
pub async fn settle_versions(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "with connected as (
           -- A revision of another epoch says nothing of this one's.
           select n.id, case when n.cp_epoch = c.cp_epoch then n.acked_revision else -1 end
             as acked_revision
           from node n, manifest_counter c
           where n.connected and n.disabled_at is null
         ), settled as (
           select v.id, count(r.node_id) as refused, count(*) as nodes, min(r.reason) as reason
           from adapter_version v
           cross join connected n
           left join node_rejection r on r.node_id = n.id and r.kind = $1
             and r.resource_id = 'adv_' || replace(v.id::text, '-', '')
           where v.state = 'verified' and v.manifest_revision is not null
           group by v.id, v.manifest_revision
           having bool_and(n.acked_revision >= v.manifest_revision)
         ), moved as (
           update adapter_version v set
             state = case when s.refused = 0 then 'ready' else 'failed' end,
             ready_at = case when s.refused = 0 then now() end,
             error = s.reason,
             error_code = case when s.refused > 0 then 'refused_by_nodes' end
           from settled s
           where v.id = s.id and v.state = 'verified' and s.refused in (0, s.nodes)
           returning v.id, v.tenant_id, v.state, v.error
         )
         insert into audit (id, tenant_id, actor, action, subject, detail)
         select gen_random_uuid(), tenant_id, 'system', 'adapter_version.' || state,
                'adv_' || replace(id::text, '-', ''),
                jsonb_strip_nulls(jsonb_build_object('error', error))
         from moved",
    )
    .bind(lorikeet_contract::link::ResourceKind::Adapter as i32)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Without control characters (Postgres refuses NUL) and of bounded length.
fn text(from_node: &str) -> String {
    from_node.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

/// Revisions and sequences come from bigint columns; a node that invents a larger one gets the
/// largest.
fn bigint(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
