//! What pages and API show of usage. Reads the hourly sums only, never the events: a page's cost
//! follows the length of its period, not the traffic.

use super::period::{Group, Period};
use lorikeet_contract::{AdapterVersionId, KeyId, TenantId};
use serde::Serialize;
use sqlx::{FromRow, PgConnection, Row};
use std::collections::HashMap;
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

/// Of finished requests. `cached_tokens` is a part of `prompt_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, FromRow)]
pub struct Sums {
    pub requests: i64,
    pub prompt_tokens: i64,
    pub cached_tokens: i64,
    pub completion_tokens: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Of the hour or day.
    #[serde(with = "rfc3339")]
    pub start: OffsetDateTime,
    #[serde(flatten)]
    pub sums: Sums,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdapterUsage {
    /// `None` is the base model.
    pub version_id: Option<AdapterVersionId>,
    /// `name@version`.
    pub adapter: Option<String>,
    #[serde(flatten)]
    pub sums: Sums,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyUsage {
    /// `None` is what needed no key, such as the playground.
    pub id: Option<KeyId>,
    /// The 8 characters in the key.
    pub key_id: Option<String>,
    pub name: Option<String>,
    #[serde(flatten)]
    pub sums: Sums,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantUsage {
    pub tenant_id: TenantId,
    pub name: String,
    #[serde(flatten)]
    pub sums: Sums,
}

/// A period, its total, and one point for each of its hours or days, also where nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Series {
    #[serde(with = "rfc3339")]
    pub from: OffsetDateTime,
    /// Not part of it.
    #[serde(with = "rfc3339")]
    pub to: OffsetDateTime,
    pub group: Group,
    pub totals: Sums,
    pub series: Vec<Point>,
}

/// One tenant's usage. The breakdowns begin with whatever used most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageReport {
    #[serde(flatten)]
    pub series: Series,
    pub by_adapter: Vec<AdapterUsage>,
    pub by_key: Vec<KeyUsage>,
}

/// Usage of all tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OperatorUsageReport {
    #[serde(flatten)]
    pub series: Series,
    pub by_tenant: Vec<TenantUsage>,
}

/// The usage of the transaction's tenant.
pub async fn usage(tx: &mut PgConnection, period: Period) -> Result<UsageReport, sqlx::Error> {
    Ok(UsageReport {
        series: series(tx, period).await?,
        by_adapter: by_adapter(tx, period).await?,
        by_key: by_key(tx, period).await?,
    })
}

/// The usage of all tenants; needs an operator's transaction.
pub async fn operator_usage(
    tx: &mut PgConnection,
    period: Period,
) -> Result<OperatorUsageReport, sqlx::Error> {
    Ok(OperatorUsageReport {
        series: series(tx, period).await?,
        by_tenant: by_tenant(tx, period).await?,
    })
}

async fn series(tx: &mut PgConnection, period: Period) -> Result<Series, sqlx::Error> {
    let mut sums: HashMap<OffsetDateTime, Sums> = sqlx::query(
        "select date_trunc($3, hour, 'UTC') as start, sum(requests)::bigint as requests,
           sum(prompt_tokens)::bigint as prompt_tokens,
           sum(cached_tokens)::bigint as cached_tokens,
           sum(completion_tokens)::bigint as completion_tokens
         from usage_hourly where hour >= $1 and hour < $2 group by 1",
    )
    .bind(period.from())
    .bind(period.to())
    .bind(period.group().as_str())
    .fetch_all(tx)
    .await?
    .iter()
    .map(|row| Ok((row.try_get("start")?, Sums::from_row(row)?)))
    .collect::<Result<_, sqlx::Error>>()?;
    let totals = sums.values().fold(Sums::default(), |total, sums| Sums {
        requests: total.requests + sums.requests,
        prompt_tokens: total.prompt_tokens + sums.prompt_tokens,
        cached_tokens: total.cached_tokens + sums.cached_tokens,
        completion_tokens: total.completion_tokens + sums.completion_tokens,
    });
    let series = period
        .starts()
        .map(|start| Point { start, sums: sums.remove(&start).unwrap_or_default() })
        .collect();
    Ok(Series { from: period.from(), to: period.to(), group: period.group(), totals, series })
}

async fn by_adapter(
    tx: &mut PgConnection,
    period: Period,
) -> Result<Vec<AdapterUsage>, sqlx::Error> {
    sqlx::query(
        "with used as (
           select adapter_version_id, sum(requests)::bigint as requests,
             sum(prompt_tokens)::bigint as prompt_tokens,
             sum(cached_tokens)::bigint as cached_tokens,
             sum(completion_tokens)::bigint as completion_tokens
           from usage_hourly where hour >= $1 and hour < $2 group by 1
         )
         select v.id as version_id, a.name || '@' || v.version as adapter, requests,
           prompt_tokens, cached_tokens, completion_tokens
         from used
         left join adapter_version v on v.id = adapter_version_id
         left join adapter a on a.id = v.adapter_id
         order by prompt_tokens + completion_tokens desc, adapter nulls first",
    )
    .bind(period.from())
    .bind(period.to())
    .fetch_all(tx)
    .await?
    .iter()
    .map(|row| {
        Ok(AdapterUsage {
            version_id: row
                .try_get::<Option<Uuid>, _>("version_id")?
                .map(AdapterVersionId::from_uuid),
            adapter: row.try_get("adapter")?,
            sums: Sums::from_row(row)?,
        })
    })
    .collect()
}

async fn by_key(tx: &mut PgConnection, period: Period) -> Result<Vec<KeyUsage>, sqlx::Error> {
    sqlx::query(
        "with used as (
           select key_id, sum(requests)::bigint as requests,
             sum(prompt_tokens)::bigint as prompt_tokens,
             sum(cached_tokens)::bigint as cached_tokens,
             sum(completion_tokens)::bigint as completion_tokens
           from usage_hourly where hour >= $1 and hour < $2 group by 1
         )
         select k.id, k.key_id, k.name, requests, prompt_tokens, cached_tokens, completion_tokens
         from used left join api_key k on k.id = used.key_id
         order by prompt_tokens + completion_tokens desc, k.name nulls first",
    )
    .bind(period.from())
    .bind(period.to())
    .fetch_all(tx)
    .await?
    .iter()
    .map(|row| {
        Ok(KeyUsage {
            id: row.try_get::<Option<Uuid>, _>("id")?.map(KeyId::from_uuid),
            key_id: row.try_get("key_id")?,
            name: row.try_get("name")?,
            sums: Sums::from_row(row)?,
        })
    })
    .collect()
}

async fn by_tenant(tx: &mut PgConnection, period: Period) -> Result<Vec<TenantUsage>, sqlx::Error> {
    sqlx::query(
        "select t.id, t.name, sum(requests)::bigint as requests,
           sum(prompt_tokens)::bigint as prompt_tokens,
           sum(cached_tokens)::bigint as cached_tokens,
           sum(completion_tokens)::bigint as completion_tokens
         from usage_hourly h join tenant t on t.id = h.tenant_id
         where hour >= $1 and hour < $2 group by t.id, t.name
         order by sum(prompt_tokens + completion_tokens) desc, t.id",
    )
    .bind(period.from())
    .bind(period.to())
    .fetch_all(tx)
    .await?
    .iter()
    .map(|row| {
        Ok(TenantUsage {
            tenant_id: TenantId::from_uuid(row.try_get("id")?),
            name: row.try_get("name")?,
            sums: Sums::from_row(row)?,
        })
    })
    .collect()
}
