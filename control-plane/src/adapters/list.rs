//! Look-ups: inside the transaction's tenant, unless they say otherwise.

use super::alias::{self, Alias};
use super::version::Version;
use lorikeet_contract::{BaseModelSpec, TenantId};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

/// An adapter and its newest version that is not deleted.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    pub id: Uuid,
    pub name: String,
    pub created_at: OffsetDateTime,
    pub latest: Option<Version>,
    /// The newest version that answers; none while it is disabled.
    pub serving_version: Option<i32>,
    pub disabled: bool,
    /// By name.
    pub aliases: Vec<Alias>,
}

#[derive(sqlx::FromRow)]
struct AdapterRow {
    id: Uuid,
    name: String,
    created_at: OffsetDateTime,
    serving_version: Option<i32>,
    disabled: bool,
}

const ADAPTERS: &str = "
    select a.id, a.name, a.created_at, a.disabled_at is not null as disabled,
           (select max(v.version) from adapter_version v
            where v.adapter_id = a.id and v.state = 'ready' and a.disabled_at is null)
             as serving_version
    from adapter a where a.deleted_at is null";

/// Every adapter, by name.
pub async fn list(tx: &mut PgConnection) -> Result<Vec<AdapterSummary>, sqlx::Error> {
    let rows: Vec<AdapterRow> =
        sqlx::query_as(AssertSqlSafe(format!("{ADAPTERS} order by a.name")))
            .fetch_all(&mut *tx)
            .await?;
    let latest: Vec<Version> = sqlx::query_as(AssertSqlSafe(format!(
        "select distinct on (adapter_id) {} from adapter_version
         where state <> 'deleted' order by adapter_id, version desc",
        Version::COLUMNS
    )))
    .fetch_all(&mut *tx)
    .await?;
    let aliases = alias::all(tx).await?;
    let summary = |row: AdapterRow| {
        let latest = latest.iter().find(|v| v.adapter_id == row.id).cloned();
        row.summary(latest, &aliases)
    };
    Ok(rows.into_iter().map(summary).collect())
}

pub async fn find(
    tx: &mut PgConnection,
    name: &str,
) -> Result<Option<AdapterSummary>, sqlx::Error> {
    let row: Option<AdapterRow> =
        sqlx::query_as(AssertSqlSafe(format!("{ADAPTERS} and a.name = $1")))
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(row) = row else { return Ok(None) };
    let latest = versions(&mut *tx, row.id).await?.into_iter().next();
    let aliases = alias::all(tx).await?;
    Ok(Some(row.summary(latest, &aliases)))
}

/// Newest first, without deleted ones.
pub async fn versions(tx: &mut PgConnection, adapter: Uuid) -> Result<Vec<Version>, sqlx::Error> {
    sqlx::query_as(AssertSqlSafe(format!(
        "select {} from adapter_version where adapter_id = $1 and state <> 'deleted'
         order by version desc",
        Version::COLUMNS
    )))
    .bind(adapter)
    .fetch_all(tx)
    .await
}

/// An adapter as operators see it.
#[derive(sqlx::FromRow)]
pub struct PinnableAdapter {
    pub name: String,
    pub pinned: bool,
    pub disabled: bool,
}

/// A tenant's adapters, by name; needs an operator's transaction.
pub async fn pinnable(
    tx: &mut PgConnection,
    tenant: TenantId,
) -> Result<Vec<PinnableAdapter>, sqlx::Error> {
    sqlx::query_as(
        "select name, pinned, disabled_at is not null as disabled from adapter
         where tenant_id = $1 and deleted_at is null order by name",
    )
    .bind(tenant.as_uuid())
    .fetch_all(tx)
    .await
}

/// One version of the adapter `name`, deleted ones excepted.
pub async fn version(
    tx: &mut PgConnection,
    name: &str,
    number: i32,
) -> Result<Option<Version>, sqlx::Error> {
    let Some(adapter) = find(tx, name).await? else { return Ok(None) };
    Ok(versions(tx, adapter.id).await?.into_iter().find(|v| v.version == number))
}

/// What uploads are checked against: the base model that nodes reported last. None before the first
/// node has connected.
pub async fn base_model(conn: &mut PgConnection) -> Result<Option<BaseModelSpec>, sqlx::Error> {
    let spec: Option<Json<BaseModelSpec>> =
        sqlx::query_scalar("select spec from base_model order by last_seen_at desc limit 1")
            .fetch_optional(conn)
            .await?;
    Ok(spec.map(|Json(spec)| spec))
}

impl AdapterRow {
    fn summary(self, latest: Option<Version>, aliases: &[Alias]) -> AdapterSummary {
        let own = aliases.iter().filter(|alias| alias.adapter_id == self.id);
        AdapterSummary {
            id: self.id,
            name: self.name,
            created_at: self.created_at,
            latest,
            serving_version: self.serving_version,
            disabled: self.disabled,
            aliases: own.cloned().collect(),
        }
    }
}
