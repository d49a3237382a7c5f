//! Uploads that are given up: by their owner, or by time.

use super::Upload;
use crate::adapters::{self, Failure, VersionState};
use crate::db::{Acting, TenantPool};
use crate::error::ApiError;
use crate::jobs::{self, Job};
use lorikeet_contract::{AdapterVersionId, UploadId};
use serde_json::json;
use uuid::Uuid;

/// The owner's wish: the version is gone, and so is an adapter that has no other.
pub async fn cancel(db: &TenantPool, acting: &Acting, id: UploadId) -> Result<(), ApiError> {
    let mut tx = db.write(acting).await?;
    let upload = Upload::find(&mut tx, id).await?;
    if upload.state == "aborted" {
        return Ok(());
    }
    // Another upload to it that begins now holds this lock: its version must be seen below.
    sqlx::query("select from adapter where id = $1 for update")
        .bind(upload.adapter_id)
        .execute(&mut *tx)
        .await?;
    upload.lock_version(&mut tx).await?;
    let aborted =
        sqlx::query("update upload set state = 'aborted' where id = $1 and state = 'open'")
            .bind(upload.id)
            .execute(&mut *tx)
            .await?;
    if aborted.rows_affected() == 0 {
        return Err(ApiError::UploadClosed);
    }
    sqlx::query("update adapter_version set state = 'deleted' where id = $1")
        .bind(upload.version_id)
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "update adapter a set deleted_at = now() where a.id = $1 and not exists (
           select 1 from adapter_version v where v.adapter_id = a.id and v.state <> 'deleted')",
    )
    .bind(upload.adapter_id)
    .execute(&mut *tx)
    .await?;
    jobs::enqueue(&mut tx, acting.tenant, &Job::EraseUpload { upload: id }).await?;
    let detail = json!({ "adapter": upload.adapter_name, "version": upload.version });
    tx.audit("upload.cancel", id, detail).await?.commit().await?;
    Ok(())
}

/// After its time an open upload fails with its version; one that has ended is left alone.
pub async fn expire(db: &TenantPool, acting: &Acting, id: UploadId) -> Result<(), sqlx::Error> {
    let mut tx = db.read(acting).await?;
    let version: Option<Uuid> = sqlx::query_scalar(
        "select version_id from upload where id = $1 and state = 'open' and expires_at <= now()",
    )
    .bind(id.as_uuid())
    .fetch_optional(&mut *tx)
    .await?;
    drop(tx);
    let Some(version) = version else { return Ok(()) };
    let failure = Failure {
        code: "upload_expired",
        message: "the upload was not completed within 24 hours: upload again".into(),
    };
    let version = AdapterVersionId::from_uuid(version);
    adapters::fail(db, acting, version, VersionState::Uploading, &failure).await
}
