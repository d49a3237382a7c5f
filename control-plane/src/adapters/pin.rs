//! Pins: an operator has every node load an adapter ahead and keep it in memory.

use super::resource::pending;
use crate::auth::OperatorCaller;
use crate::db::{Acting, Actor, Db};
use crate::error::ApiError;
use lorikeet_contract::link::{AdapterResource, AdapterState, Artifact, ResourceKind};
use lorikeet_contract::{AdapterId, AdapterVersionId, TenantId};
use serde_json::json;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

/// A version that nodes serve.
#[derive(FromRow)]
struct Served {
    id: Uuid,
    version: i32,
    digest: Vec<u8>,
    base_weights_digest: Vec<u8>,
    rank: i32,
    targets: Vec<String>,
    layout_version: i32,
    object_key: String,
    bytes: i64,
    artifact_digest: Vec<u8>,
}

/// Pins a tenant's adapter, or ends that, and tells the nodes, in one transaction. Versions that
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
    // The row's lock orders this against a version that is being published.
    let adapter: Uuid = sqlx::query_scalar(
        "update adapter set pinned = $3
         where tenant_id = $1 and name = $2 and deleted_at is null returning id",
    )
    .bind(tenant.as_uuid())
    .bind(name)
    .bind(pinned)
    .fetch_one(&mut *tx)
    .await?;
    let served = served(&mut tx, adapter).await?;
    let action = if pinned { "adapter.pin" } else { "adapter.unpin" };
    let mut tx = tx.audit(action, name, json!({})).await?;
    for version in served {
        let id = AdapterVersionId::from_uuid(version.id);
        let resource = version.resource(tenant, AdapterId::from_uuid(adapter), name, pinned);
        tx.publish(ResourceKind::Adapter, id, &resource).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Whether the adapter is pinned; whoever changes that waits for the transaction's end.
pub async fn lock_pinned(tx: &mut PgConnection, adapter: AdapterId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pinned from adapter where id = $1 for share")
        .bind(adapter.as_uuid())
        .fetch_one(tx)
        .await
}

async fn served(tx: &mut PgConnection, adapter: Uuid) -> Result<Vec<Served>, sqlx::Error> {
    sqlx::query_as(
        "select distinct on (v.version) v.id, v.version, v.digest, v.base_weights_digest, v.rank,
           v.targets, f.layout_version, f.object_key, f.bytes, f.digest as artifact_digest
         from adapter_version v join artifact f on f.version_id = v.id
         where v.adapter_id = $1 and v.state in ('verified', 'ready')
         order by v.version, f.layout_version desc",
    )
    .bind(adapter)
    .fetch_all(tx)
    .await
}

impl Served {
    fn resource(
        self,
        tenant: TenantId,
        adapter: AdapterId,
        name: &str,
        pinned: bool,
    ) -> AdapterResource {
        let id = AdapterVersionId::from_uuid(self.id);
        AdapterResource {
            digest: self.digest,
            base_weights_digest: self.base_weights_digest,
            artifact: Some(Artifact {
                layout_version: self.layout_version.unsigned_abs(),
                object_key: self.object_key,
                bytes: self.bytes.unsigned_abs(),
                digest: self.artifact_digest,
            }),
            max_rank: self.rank.unsigned_abs(),
            targets: self.targets,
            state: AdapterState::Servable.into(),
            pinned,
            ..pending(tenant, adapter, name, id, self.version)
        }
    }
}
