//! Deleting an adapter: its versions stop answering, its bytes are erased. Its rows stay as long as
//! the ledger refers to them.

use crate::db::{Acting, TenantPool};
use crate::error::ApiError;
use crate::jobs::{self, Job};
use lorikeet_contract::AdapterVersionId;
use lorikeet_contract::link::ResourceKind;
use serde_json::json;
use uuid::Uuid;

/// Takes every version and alias of the adapter out of the manifest and enqueues the erasure.
pub async fn delete(db: &TenantPool, acting: &Acting, name: &str) -> Result<(), ApiError> {
    let mut tx = db.write(acting).await?;
    let adapter: Uuid = sqlx::query_scalar(
        "update adapter set deleted_at = now() where name = $1 and deleted_at is null returning id",
    )
    .bind(name)
    .fetch_one(&mut *tx)
    .await?;
    let versions: Vec<Uuid> = sqlx::query_scalar(
        "update adapter_version set state = 'deleted' where adapter_id = $1 and state <> 'deleted'
         returning id",
    )
    .bind(adapter)
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query(
        "update upload set state = 'aborted' where version_id = any($1) and state = 'open'",
    )
    .bind(&versions)
    .execute(&mut *tx)
    .await?;
    let aliases: Vec<Uuid> =
        sqlx::query_scalar("delete from alias where adapter_id = $1 returning id")
            .bind(adapter)
            .fetch_all(&mut *tx)
            .await?;
    let versions: Vec<_> = versions.into_iter().map(AdapterVersionId::from_uuid).collect();
    for version in &versions {
        jobs::enqueue(&mut tx, acting.tenant, &Job::EraseVersion { version: *version }).await?;
    }

    let mut tx = tx.audit("adapter.delete", name, json!({ "versions": versions.len() })).await?;
    for alias in aliases {
        let alias = lorikeet_contract::AliasId::from_uuid(alias);
        tx.publish_tombstone(ResourceKind::Alias, alias).await?;
    }
    for version in versions {
        tx.publish_tombstone(ResourceKind::Adapter, version).await?;
    }
    tx.commit().await?;
    Ok(())
}
