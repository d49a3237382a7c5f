//! The end of a version that cannot be served.

use super::version::VersionState;
use crate::db::{Acting, TenantPool};
use crate::jobs::{self, Job};
use lorikeet_contract::link::ResourceKind;
use lorikeet_contract::{AdapterVersionId, UploadId};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

/// Why a version failed, for its owner; `code` is for programs and does not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: &'static str,
    pub message: String,
}

/// Marks a version as failed that is still in `state`, takes it out of the manifest and has what was
/// staged deleted.
pub async fn fail(
    db: &TenantPool,
    acting: &Acting,
    version: AdapterVersionId,
    state: VersionState,
    failure: &Failure,
) -> Result<(), sqlx::Error> {
    let mut tx = db.write(acting).await?;
    // Whoever tells the nodes of all versions holds this lock: they must not hear of this one afterwards.
    sqlx::query(
        "select from adapter
         where id = (select adapter_id from adapter_version where id = $1) for share",
    )
    .bind(version.as_uuid())
    .execute(&mut *tx)
    .await?;
    let failed = sqlx::query(
        "update adapter_version set state = 'failed', error = $3, error_code = $4
         where id = $1 and state = $2",
    )
    .bind(version.as_uuid())
    .bind(state.as_str())
    .bind(&failure.message)
    .bind(failure.code)
    .execute(&mut *tx)
    .await?;
    if failed.rows_affected() == 0 {
        return Ok(());
    }
    let uploads: Vec<Uuid> = sqlx::query_scalar(
        "update upload set state = case state when 'open' then 'aborted' else state end
         where version_id = $1 returning id",
    )
    .bind(version.as_uuid())
    .fetch_all(&mut *tx)
    .await?;
    for upload in uploads {
        let job = Job::EraseUpload { upload: UploadId::from_uuid(upload) };
        jobs::enqueue(&mut tx, acting.tenant, &job).await?;
    }
    let detail = json!({ "code": failure.code, "message": failure.message });
    let mut tx = tx.audit("adapter_version.fail", version, detail).await?;
    // Nodes have heard only of complete uploads.
    if state == VersionState::Verifying {
        tx.publish_tombstone(ResourceKind::Adapter, version).await?;
    }
    tx.commit().await
}

/// At which revision the version became known: it is ready when every connected node has
/// acknowledged that.
pub async fn set_revision(
    tx: &mut PgConnection,
    version: AdapterVersionId,
    revision: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("update adapter_version set manifest_revision = $2 where id = $1")
        .bind(version.as_uuid())
        .bind(revision)
        .execute(tx)
        .await
        .map(drop)
}
