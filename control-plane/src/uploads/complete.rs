//! The end of a whole upload: its parts become objects, and the check is enqueued.

use super::Upload;
use super::parts::{ReceivedRow, received};
use super::plan::PlannedFile;
use crate::adapters;
use crate::db::{Acting, TenantPool};
use crate::error::ApiError;
use crate::jobs::{self, Job};
use crate::objects::{FinishError, Objects};
use lorikeet_contract::link::ResourceKind;
use lorikeet_contract::{AdapterId, UploadId};
use serde_json::json;

/// Repeating it is harmless. Returns the adapter's name and the version's number.
pub async fn complete(
    db: &TenantPool,
    objects: &Objects,
    acting: &Acting,
    id: UploadId,
) -> Result<(String, i32), ApiError> {
    let mut tx = db.read(acting).await?;
    let upload = Upload::find(&mut tx, id).await?;
    let received = received(&mut tx, id).await?;
    drop(tx);
    if upload.state == "completed" {
        return Ok((upload.adapter_name, upload.version));
    }
    if !upload.is_open() {
        return Err(ApiError::UploadClosed);
    }
    for file in upload.files.iter() {
        let parts = parts_of(file, &received)?;
        let finished =
            objects.finish_multipart(&file.object_key, &file.s3_upload_id, parts, file.bytes);
        finished.await.map_err(|error| match error {
            FinishError::Rejected => ApiError::PartsRejected { file: file.name.clone() },
            FinishError::Store(error) => error.into(),
        })?;
    }
    commit(db, acting, &upload).await?;
    Ok((upload.adapter_name, upload.version))
}

/// The reported parts of a file, if they are all there.
fn parts_of(file: &PlannedFile, received: &[ReceivedRow]) -> Result<Vec<(i32, String)>, ApiError> {
    let etag_of =
        |number: i32| received.iter().find(|r| r.file == file.name && r.part_number == number);
    let part = |number: i32| {
        let row = etag_of(number)
            .ok_or_else(|| ApiError::UploadIncomplete { file: file.name.clone(), part: number })?;
        Ok((number, row.etag.clone()))
    };
    file.parts().map(|p| part(p.number)).collect()
}

async fn commit(db: &TenantPool, acting: &Acting, upload: &Upload) -> Result<(), ApiError> {
    let version = upload.version_id();
    let adapter = AdapterId::from_uuid(upload.adapter_id);
    let mut tx = db.write(acting).await?;
    let standing = adapters::Standing::lock(&mut tx, adapter).await?;
    upload.lock_version(&mut tx).await?;
    let closed = sqlx::query(
        "update upload set state = 'completed', completed_at = now()
         where id = $1 and state = 'open'",
    )
    .bind(upload.id)
    .execute(&mut *tx)
    .await?;
    if closed.rows_affected() == 0 {
        // Another request was faster: with the same end, or it cancelled and has the bytes deleted.
        let now = Upload::find(&mut tx, upload.id()).await?;
        return if now.state == "completed" { Ok(()) } else { Err(ApiError::UploadClosed) };
    }
    sqlx::query("update adapter_version set state = 'verifying' where id = $1")
        .bind(upload.version_id)
        .execute(&mut *tx)
        .await?;
    jobs::enqueue(&mut tx, acting.tenant, &Job::VerifyAdapter { version }).await?;
    let detail = json!({ "adapter": upload.adapter_name, "version_id": version });
    let mut tx = tx.audit("upload.complete", upload.id(), detail).await?;
    let pending =
        adapters::pending(acting.tenant, adapter, &upload.adapter_name, version, upload.version);
    let revision = tx.publish(ResourceKind::Adapter, version, &standing.apply(pending)).await?;
    adapters::set_revision(&mut tx, version, revision).await?;
    tx.commit().await?;
    Ok(())
}
