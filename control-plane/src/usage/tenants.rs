//! The tenants as operators list them.

use super::queries::Sums;
use crate::tenants::TenantLimits;
use lorikeet_contract::TenantId;
use serde::Serialize;
use sqlx::{FromRow, PgConnection, Row};
use time::OffsetDateTime;
use time::serde::rfc3339;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantSummary {
    pub id: TenantId,
    pub name: String,
    pub suspended: bool,
    /// Not revoked.
    pub keys: i64,
    pub adapters: i64,
    /// Of the uploaded files of all versions that are kept.
    pub adapter_bytes: i64,
    /// Usage of the current month (UTC).
    pub this_month: Sums,
    pub limits: TenantLimits,
    #[serde(with = "rfc3339")]
    pub created_at: OffsetDateTime,
}

/// All tenants, by name; needs an operator's transaction.
pub async fn tenants(
    tx: &mut PgConnection,
    now: OffsetDateTime,
) -> Result<Vec<TenantSummary>, sqlx::Error> {
    sqlx::query(
        "with used as (
           select tenant_id, sum(requests)::bigint as requests,
             sum(prompt_tokens)::bigint as prompt_tokens,
             sum(cached_tokens)::bigint as cached_tokens,
             sum(completion_tokens)::bigint as completion_tokens
           from usage_hourly where hour >= date_trunc('month', $1::timestamptz, 'UTC') group by 1
         )
         select t.id, t.name, t.suspended_at is not null as suspended, t.created_at,
           t.max_concurrency, t.requests_per_minute, t.tokens_per_minute, t.weight,
           t.adapter_host_bytes, t.adapter_device_bytes,
           (select count(*) from api_key k where k.tenant_id = t.id and k.revoked_at is null)
             as keys,
           (select count(*) from adapter a where a.tenant_id = t.id and a.deleted_at is null)
             as adapters,
           (select coalesce(sum(v.source_bytes), 0)::bigint from adapter_version v
             where v.tenant_id = t.id and v.state not in ('failed', 'deleted')) as adapter_bytes,
           coalesce(requests, 0) as requests, coalesce(prompt_tokens, 0) as prompt_tokens,
           coalesce(cached_tokens, 0) as cached_tokens,
           coalesce(completion_tokens, 0) as completion_tokens
         from tenant t left join used on used.tenant_id = t.id
         where t.deleted_at is null order by lower(t.name), t.id",
    )
    .bind(now)
    .fetch_all(tx)
    .await?
    .iter()
    .map(|row| {
        Ok(TenantSummary {
            id: TenantId::from_uuid(row.try_get("id")?),
            name: row.try_get("name")?,
            suspended: row.try_get("suspended")?,
            keys: row.try_get("keys")?,
            adapters: row.try_get("adapters")?,
            adapter_bytes: row.try_get("adapter_bytes")?,
            this_month: Sums::from_row(row)?,
            limits: TenantLimits::from_row(row)?,
            created_at: row.try_get("created_at")?,
        })
    })
    .collect()
}
