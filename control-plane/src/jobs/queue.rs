//! The table `job`. A claimed job is leased; a worker that dies lets the lease run out.

use super::Job;
use lorikeet_contract::TenantId;
use sqlx::{PgConnection, PgPool};
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

/// A lease is renewed at a third of it.
pub(super) const LEASE: Duration = Duration::from_secs(60);
/// Claims take turns, so that two workers cannot both find a tenant idle. Chosen at random.
const CLAIM_LOCK: i64 = 0x6c6b_5f6a_6f62;

/// Enqueues for now, in the caller's transaction.
pub async fn enqueue(
    tx: &mut PgConnection,
    tenant: TenantId,
    job: &Job,
) -> Result<(), sqlx::Error> {
    enqueue_at(tx, tenant, job, OffsetDateTime::now_utc()).await
}

pub async fn enqueue_at(
    tx: &mut PgConnection,
    tenant: TenantId,
    job: &Job,
    at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    let job = serde_json::to_value(job).map_err(|e| sqlx::Error::Encode(e.into()))?;
    sqlx::query(
        "insert into job (id, tenant_id, kind, payload, run_at) values ($1, $2, $3, $4, $5)",
    )
    .bind(Uuid::now_v7())
    .bind(tenant.as_uuid())
    .bind(job["kind"].as_str())
    .bind(&job["payload"])
    .bind(at)
    .execute(tx)
    .await?;
    Ok(())
}

/// A leased job. The end of the lease tells this holder from a later one.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Claimed {
    pub id: Uuid,
    pub kind: String,
    pub payload: serde_json::Value,
    tenant_id: Uuid,
    pub attempts: i32,
    pub max_attempts: i32,
    locked_until: OffsetDateTime,
}

impl Claimed {
    pub fn tenant(&self) -> TenantId {
        TenantId::from_uuid(self.tenant_id)
    }

    pub fn job(&self) -> Result<Job, serde_json::Error> {
        serde_json::from_value(serde_json::json!({ "kind": self.kind, "payload": self.payload }))
    }
}

/// The job due longest whose tenant has none running.
pub(super) async fn claim(pool: &PgPool) -> Result<Option<Claimed>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(CLAIM_LOCK).execute(&mut *tx).await?;
    let claimed = sqlx::query_as(
        "update job set attempts = attempts + 1,
                        locked_until = clock_timestamp() + make_interval(secs => $1)
         where id = (
           select j.id from job j
           where j.finished_at is null and j.failed_at is null and j.tenant_id is not null
             and j.run_at <= clock_timestamp()
             and (j.locked_until is null or j.locked_until < clock_timestamp())
             and not exists (
               select 1 from job running
               where running.tenant_id = j.tenant_id and running.locked_until > clock_timestamp()
                 and running.finished_at is null and running.failed_at is null)
           order by j.run_at limit 1
           for update skip locked)
         returning id, kind, payload, tenant_id, attempts, max_attempts, locked_until",
    )
    .bind(LEASE.as_secs_f64())
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(claimed)
}

/// False: the lease was lost, and someone else may run the job.
pub(super) async fn renew(pool: &PgPool, claimed: &mut Claimed) -> Result<bool, sqlx::Error> {
    let until: Option<OffsetDateTime> = sqlx::query_scalar(
        "update job set locked_until = clock_timestamp() + make_interval(secs => $3)
         where id = $1 and locked_until = $2 returning locked_until",
    )
    .bind(claimed.id)
    .bind(claimed.locked_until)
    .bind(LEASE.as_secs_f64())
    .fetch_optional(pool)
    .await?;
    let Some(until) = until else { return Ok(false) };
    claimed.locked_until = until;
    Ok(true)
}

/// How a run of a job ended.
pub(super) enum End<'a> {
    Finished,
    /// Not counted as an attempt.
    Postponed(Duration),
    Retry {
        after: Duration,
        error: &'a str,
    },
    GivenUp {
        error: &'a str,
    },
}

/// Ends the lease. Does nothing when it was lost.
pub(super) async fn end(pool: &PgPool, job: &Claimed, end: End<'_>) -> Result<(), sqlx::Error> {
    let (finished, failed, uncounted, after, error) = match end {
        End::Finished => (true, false, 0, Duration::ZERO, None),
        End::Postponed(after) => (false, false, 1, after, None),
        End::Retry { after, error } => (false, false, 0, after, Some(error)),
        End::GivenUp { error } => (false, true, 0, Duration::ZERO, Some(error)),
    };
    sqlx::query(
        "update job set locked_until = null, attempts = attempts - $5, last_error = $7,
                        run_at = clock_timestamp() + make_interval(secs => $6),
                        finished_at = case when $3 then now() end,
                        failed_at = case when $4 then now() end
         where id = $1 and locked_until = $2",
    )
    .bind(job.id)
    .bind(job.locked_until)
    .bind(finished)
    .bind(failed)
    .bind(uncounted)
    .bind(after.as_secs_f64())
    .bind(error)
    .execute(pool)
    .await?;
    Ok(())
}
