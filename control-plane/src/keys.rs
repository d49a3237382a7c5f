//! API keys: made, listed, revoked. What the API and the pages do alike.

use crate::auth::TenantCaller;
use crate::db::Actor;
use crate::error::ApiError;
use crate::state::AppState;
use lorikeet_contract::key::{ApiKey, Scope};
use lorikeet_contract::link::{KeyResource, ResourceKind};
use lorikeet_contract::{KeyId, TenantId};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

/// A key without its secret.
#[derive(Debug, Clone, Serialize)]
pub struct KeyInfo {
    pub id: KeyId,
    /// The 8 characters in the key that name it.
    pub key_id: String,
    pub name: String,
    pub scopes: Vec<String>,
    #[serde(with = "rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    pub last_used_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    key_id: String,
    name: String,
    scopes: Vec<String>,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
}

impl From<Row> for KeyInfo {
    fn from(row: Row) -> Self {
        Self {
            id: KeyId::from_uuid(row.id),
            key_id: row.key_id,
            name: row.name,
            scopes: row.scopes,
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            revoked_at: row.revoked_at,
        }
    }
}

/// The tenant's keys, the newest first, with those that are revoked.
pub async fn list(state: &AppState, caller: &TenantCaller) -> Result<Vec<KeyInfo>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "select id, key_id, name, scopes, created_at, expires_at, last_used_at, revoked_at
         from api_key order by created_at desc, id desc",
    )
    .fetch_all(&mut *tx)
    .await?;
    Ok(rows.into_iter().map(KeyInfo::from).collect())
}

#[derive(Deserialize)]
pub struct NewKey {
    pub name: String,
    pub scopes: Vec<String>,
    #[serde(default, with = "rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}

#[derive(Serialize)]
pub struct CreatedKey {
    #[serde(flatten)]
    pub info: KeyInfo,
    /// The whole key. Shown this once, kept nowhere.
    pub key: String,
}

/// Makes a key and publishes its hash to the nodes.
pub async fn create(
    state: &AppState,
    caller: &TenantCaller,
    new: NewKey,
) -> Result<CreatedKey, ApiError> {
    let name = new.name.trim();
    if name.is_empty() || name.chars().count() > 80 {
        return Err(ApiError::invalid("name", "the name needs 1 to 80 characters"));
    }
    let scopes = checked_scopes(&new.scopes)?;
    if new.expires_at.is_some_and(|at| at <= OffsetDateTime::now_utc()) {
        return Err(ApiError::invalid("expires_at", "the expiry lies in the past"));
    }

    let key = ApiKey::generate();
    let id = KeyId::new();
    let user = match caller.actor {
        Actor::User(user) => Some(user.as_uuid()),
        _ => None,
    };
    let mut tx = state.db.app.write(&caller.acting()).await?;
    refuse_beyond_quota(&mut tx, caller.tenant).await?;
    let row: Row = sqlx::query_as(
        "insert into api_key (id, tenant_id, key_id, secret_hash, name, scopes, expires_at, created_by)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         returning id, key_id, name, scopes, created_at, expires_at, last_used_at, revoked_at",
    )
    .bind(id.as_uuid())
    .bind(caller.tenant.as_uuid())
    .bind(key.key_id())
    .bind(&key.secret_hash()[..])
    .bind(name)
    .bind(&scopes)
    .bind(new.expires_at)
    .bind(user)
    .fetch_one(&mut *tx)
    .await?;
    let detail = serde_json::json!({ "name": name, "scopes": scopes });
    let mut tx = tx.audit("key.create", id, detail).await?;
    let resource = KeyResource {
        id: id.to_string(),
        tenant_id: caller.tenant.to_string(),
        key_id: key.key_id().to_owned(),
        secret_hash: key.secret_hash().to_vec(),
        scopes,
        expires_unix_ms: row.expires_at.map(|at| (at.unix_timestamp_nanos() / 1_000_000) as i64),
    };
    tx.publish(ResourceKind::Key, id, &resource).await?;
    tx.commit().await?;
    Ok(CreatedKey { info: row.into(), key: key.reveal().to_owned() })
}

fn checked_scopes(names: &[String]) -> Result<Vec<String>, ApiError> {
    let mut scopes = Vec::new();
    for name in names {
        let scope = Scope::parse(name).ok_or_else(|| {
            ApiError::invalid("scopes", format!("`{name}` is none of inference, manage and read"))
        })?;
        scopes.push(scope);
    }
    scopes.sort();
    scopes.dedup();
    if scopes.is_empty() {
        return Err(ApiError::invalid("scopes", "a key needs at least one scope"));
    }
    Ok(scopes.into_iter().map(|s| s.as_str().to_owned()).collect())
}

/// Locks the tenant's row, so that two requests cannot both take the last place.
async fn refuse_beyond_quota(tx: &mut PgConnection, tenant: TenantId) -> Result<(), ApiError> {
    let max: i32 =
        sqlx::query_scalar("select max_keys from tenant where id = $1 for no key update")
            .bind(tenant.as_uuid())
            .fetch_one(&mut *tx)
            .await?;
    let used: i64 = sqlx::query_scalar(
        "select count(*) from api_key
         where revoked_at is null and (expires_at is null or expires_at > now())",
    )
    .fetch_one(tx)
    .await?;
    if used >= i64::from(max) {
        return Err(ApiError::QuotaExceeded { what: "API keys", limit: i64::from(max) });
    }
    Ok(())
}

/// Revokes at once: besides leaving the manifest, the key enters the nodes' deny-set. Revoking a
/// revoked key changes nothing.
pub async fn revoke(state: &AppState, caller: &TenantCaller, id: KeyId) -> Result<(), ApiError> {
    let mut tx = state.db.app.write(&caller.acting()).await?;
    let revoked_at: Option<OffsetDateTime> =
        sqlx::query_scalar("select revoked_at from api_key where id = $1 for no key update")
            .bind(id.as_uuid())
            .fetch_one(&mut *tx)
            .await?;
    if revoked_at.is_some() {
        return Ok(());
    }
    sqlx::query("update api_key set revoked_at = now() where id = $1")
        .bind(id.as_uuid())
        .execute(&mut *tx)
        .await?;
    let mut tx = tx.audit("key.revoke", id, serde_json::json!({})).await?;
    tx.publish_tombstone(ResourceKind::Key, id).await?;
    tx.revoke_key(id).await?;
    Ok(tx.commit().await?)
}
