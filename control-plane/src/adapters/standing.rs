//! What holds for all versions of an adapter: whether an operator pins it, and whether its owner has
//! switched it off. Nodes hear of it with each version.

use super::resource::pending;
use crate::auth::OperatorCaller;
use crate::db::{Acting, Actor, Db, TenantPool, TenantTx};
use crate::error::ApiError;
use lorikeet_contract::link::{AdapterResource, AdapterState, Artifact, ResourceKind};
use lorikeet_contract::{AdapterId, AdapterVersionId, TenantId};
use serde_json::json;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, FromRow)]
pub struct Standing {
    pinned: bool,
    disabled: bool,
}

impl Standing {
    /// For whoever publishes a version: whoever changes it waits for the transaction's end. To be
    /// locked before the version's row.
    pub async fn lock(tx: &mut PgConnection, adapter: AdapterId) -> Result<Self, sqlx::Error> {
        sqlx::query_as(
            "select pinned, disabled_at is not null as disabled from adapter where id = $1 for share",
        )
        .bind(adapter.as_uuid())
        .fetch_one(tx)
        .await
    }

    pub fn apply(self, resource: AdapterResource) -> AdapterResource {
        let state = if self.disabled { AdapterState::Disabled.into() } else { resource.state };
        AdapterResource { pinned: self.pinned, state, ..resource }
    }
}

/// Has every node load a tenant's adapter ahead and keep it in memory, or ends that. Versions that
/// follow inherit it. Repeating it changes nothing.
pub async fn set_pinned(
    db: &Db,
    operator: &OperatorCaller,
    tenant: TenantId,
    name: &str,
    pinned: bool,
) -> Result<(), ApiError> {
    let actor = Actor::User(operator.user);
    let acting = Acting { tenant, actor, request_id: operator.request_id.clone() };
    let mut tx = db.operate(&acting).await?;
    let adapter: Uuid = sqlx::query_scalar(
        "update adapter set pinned = $3
         where tenant_id = $1 and name = $2 and deleted_at is null returning id",
    )
    .bind(tenant.as_uuid())
    .bind(name)
    .bind(pinned)
    .fetch_one(&mut *tx)
    .await?;
    let action = if pinned { "adapter.pin" } else { "adapter.unpin" };
    publish(tx, action, tenant, adapter, name).await
}

/// Has nodes refuse the adapter under all its names and let go of its bytes, or ends that. Requests
/// that run end as they would have; versions that follow inherit it. Repeating it changes nothing.
pub async fn set_disabled(
    db: &TenantPool,
    acting: &Acting,
    name: &str,
    disabled: bool,
) -> Result<(), ApiError> {
    let mut tx = db.write(acting).await?;
    let adapter: Uuid = sqlx::query_scalar(
        "update adapter set disabled_at = case when $2 then coalesce(disabled_at, now()) end
         where name = $1 and deleted_at is null returning id",
    )
    .bind(name)
    .bind(disabled)
    .fetch_one(&mut *tx)
    .await?;
    let action = if disabled { "adapter.disable" } else { "adapter.enable" };
    publish(tx, action, acting.tenant, adapter, name).await
}

/// Tells the nodes of every version that they know, in the transaction that changed the adapter's row:
/// its lock orders this against a version that is being published.
async fn publish(
    mut tx: TenantTx,
    action: &'static str,
    tenant: TenantId,
    adapter: Uuid,
    name: &str,
) -> Result<(), ApiError> {
    let adapter = AdapterId::from_uuid(adapter);
    let standing = Standing::lock(&mut tx, adapter).await?;
    let versions = versions(&mut tx, adapter).await?;
    let mut tx = tx.audit(action, name, json!({})).await?;
    for version in versions {
        let id = AdapterVersionId::from_uuid(version.id);
        let resource = standing.apply(version.resource(tenant, adapter, name));
        tx.publish(ResourceKind::Adapter, id, &resource).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// A version that nodes know: being checked, or checked and packed.
#[derive(FromRow)]
struct Known {
    id: Uuid,
    version: i32,
    #[sqlx(flatten)]
    packed: Packed,
}

/// All null, or nothing, while the version is being checked.
#[derive(FromRow)]
struct Packed {
    digest: Option<Vec<u8>>,
    base_weights_digest: Option<Vec<u8>>,
    rank: Option<i32>,
    targets: Vec<String>,
    layout_version: Option<i32>,
    object_key: Option<String>,
    bytes: Option<i64>,
    artifact_digest: Option<Vec<u8>>,
}

async fn versions(tx: &mut PgConnection, adapter: AdapterId) -> Result<Vec<Known>, sqlx::Error> {
    sqlx::query_as(
        "select distinct on (v.version) v.id, v.version, v.digest, v.base_weights_digest, v.rank,
           v.targets, f.layout_version, f.object_key, f.bytes, f.digest as artifact_digest
         from adapter_version v
         left join artifact f on f.version_id = v.id and v.state in ('verified', 'ready')
         where v.adapter_id = $1 and v.state in ('verifying', 'verified', 'ready')
         order by v.version, f.layout_version desc",
    )
    .bind(adapter.as_uuid())
    .fetch_all(tx)
    .await
}

impl Known {
    fn resource(self, tenant: TenantId, adapter: AdapterId, name: &str) -> AdapterResource {
        let id = AdapterVersionId::from_uuid(self.id);
        let pending = pending(tenant, adapter, name, id, self.version);
        match self.packed {
            Packed {
                digest: Some(digest),
                base_weights_digest: Some(base_weights_digest),
                rank: Some(rank),
                targets,
                layout_version: Some(layout_version),
                object_key: Some(object_key),
                bytes: Some(bytes),
                artifact_digest: Some(artifact_digest),
            } => AdapterResource {
                digest,
                base_weights_digest,
                artifact: Some(Artifact {
                    layout_version: layout_version.unsigned_abs(),
                    object_key,
                    bytes: bytes.unsigned_abs(),
                    digest: artifact_digest,
                }),
                max_rank: rank.unsigned_abs(),
                targets,
                state: AdapterState::Servable.into(),
                ..pending
            },
            _ => pending,
        }
    }
}
