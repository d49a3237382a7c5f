//! Names that point at a version, `adapter@alias`, so that what answers changes without a change in
//! whoever asks.

use super::version::VersionState;
use crate::db::{Acting, TenantPool};
use crate::error::ApiError;
use lorikeet_contract::link::{AliasResource, ResourceKind};
use lorikeet_contract::{AdapterVersionId, AliasId};
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Alias {
    #[serde(skip)]
    pub adapter_id: Uuid,
    pub alias: String,
    /// What it points at.
    pub version: i32,
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// The form of an alias, `alias_form` in the schema. It begins with a letter, so that it is never
/// taken for a version's number.
fn is_alias(alias: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=63).contains(&alias.len())
        && alias.bytes().all(allowed)
        && alias.starts_with(|c: char| c.is_ascii_lowercase())
}

/// Those of every adapter, by name.
pub(super) async fn all(tx: &mut PgConnection) -> Result<Vec<Alias>, sqlx::Error> {
    sqlx::query_as(
        "select a.adapter_id, a.alias, v.version, a.updated_at
         from alias a join adapter_version v on v.id = a.version_id order by a.alias",
    )
    .fetch_all(tx)
    .await
}

/// Points the alias at a version that answers. Requests that have begun keep theirs; nodes learn of
/// it with the next revision of the manifest.
pub async fn set(
    db: &TenantPool,
    acting: &Acting,
    name: &str,
    alias: &str,
    version: i32,
) -> Result<Alias, ApiError> {
    if !is_alias(alias) {
        let form =
            "an alias is a lower case letter, then lower case letters, digits, `.`, `_`, `-`";
        return Err(ApiError::invalid("alias", form));
    }
    let mut tx = db.write(acting).await?;
    let adapter = lock_adapter(&mut tx, name).await?;
    let (version_id, state): (Uuid, String) = sqlx::query_as(
        "select id, state from adapter_version
         where adapter_id = $1 and version = $2 and state <> 'deleted'",
    )
    .bind(adapter)
    .bind(version)
    .fetch_one(&mut *tx)
    .await?;
    if state != VersionState::Ready.as_str() {
        return Err(ApiError::VersionNotReady { version });
    }
    let (id, updated_at): (Uuid, OffsetDateTime) = sqlx::query_as(
        "insert into alias (id, tenant_id, adapter_id, alias, version_id)
         values ($1, $2, $3, $4, $5)
         on conflict on constraint alias_key
         do update set version_id = excluded.version_id, updated_at = now()
         returning id, updated_at",
    )
    .bind(AliasId::new().as_uuid())
    .bind(acting.tenant.as_uuid())
    .bind(adapter)
    .bind(alias)
    .bind(version_id)
    .fetch_one(&mut *tx)
    .await?;
    let id = AliasId::from_uuid(id);
    let subject = format!("{name}@{alias}");
    let mut tx = tx.audit("alias.set", subject, json!({ "version": version })).await?;
    let resource = AliasResource {
        id: id.to_string(),
        tenant_id: acting.tenant.to_string(),
        adapter_name: name.to_owned(),
        alias: alias.to_owned(),
        version_id: AdapterVersionId::from_uuid(version_id).to_string(),
    };
    tx.publish(ResourceKind::Alias, id, &resource).await?;
    tx.commit().await?;
    Ok(Alias { adapter_id: adapter, alias: alias.to_owned(), version, updated_at })
}

/// Takes the alias away; what calls it then is told that there is no such model.
pub async fn unset(
    db: &TenantPool,
    acting: &Acting,
    name: &str,
    alias: &str,
) -> Result<(), ApiError> {
    let mut tx = db.write(acting).await?;
    let adapter = lock_adapter(&mut tx, name).await?;
    let id: Uuid =
        sqlx::query_scalar("delete from alias where adapter_id = $1 and alias = $2 returning id")
            .bind(adapter)
            .bind(alias)
            .fetch_one(&mut *tx)
            .await?;
    let mut tx = tx.audit("alias.unset", format!("{name}@{alias}"), json!({})).await?;
    tx.publish_tombstone(ResourceKind::Alias, AliasId::from_uuid(id)).await?;
    tx.commit().await?;
    Ok(())
}

/// The adapter's row, held against its deletion.
async fn lock_adapter(tx: &mut PgConnection, name: &str) -> Result<Uuid, sqlx::Error> {
    sqlx::query_scalar("select id from adapter where name = $1 and deleted_at is null for update")
        .bind(name)
        .fetch_one(tx)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_no_number_and_no_address() {
        for good in ["stable", "a", "v2.1", "blue-green_1"] {
            assert!(is_alias(good), "{good}");
        }
        for bad in ["", "1", "1a", "-a", "A", "a/b", "a@b", "ä", &"a".repeat(64)] {
            assert!(!is_alias(bad), "{bad}");
        }
    }
}
