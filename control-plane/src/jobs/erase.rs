//! Deletes bytes that nothing refers to any more.

use super::{JobContext, Outcome};
use crate::adapters::VersionState;
use crate::db::Acting;
use crate::objects::{ObjectError, Objects, artifact_key, source_key};
use crate::uploads::PlannedFile;
use lorikeet_contract::adapter::files::{CONFIG_FILE, WEIGHTS_FILE};
use lorikeet_contract::{AdapterDigest, AdapterVersionId, UploadId};
use sqlx::types::Json;
use uuid::Uuid;

/// Unfinished parts and staged objects.
pub(super) async fn upload(
    context: &JobContext,
    acting: &Acting,
    upload: UploadId,
) -> anyhow::Result<Outcome> {
    let mut tx = context.db.jobs.read(acting).await?;
    let found: Option<(String, Json<Vec<PlannedFile>>)> =
        sqlx::query_as("select state, files from upload where id = $1")
            .bind(upload.as_uuid())
            .fetch_optional(&mut *tx)
            .await?;
    drop(tx);
    let Some((state, Json(files))) = found else { return Ok(Outcome::Done) };
    // One file's error does not keep the others.
    let mut result = Ok(Outcome::Done);
    for file in files {
        if let Err(error) = erase_staged(&context.objects, &file, &state).await {
            result = Err(error.into());
        }
    }
    result
}

async fn erase_staged(
    objects: &Objects,
    file: &PlannedFile,
    upload_state: &str,
) -> Result<(), ObjectError> {
    // An upload that was given up may have been half completed. Some stores do not answer the abort
    // of a multipart upload that has ended as S3 does.
    if upload_state != "completed" && objects.size(&file.object_key).await?.is_none() {
        objects.abort_multipart(&file.object_key, &file.s3_upload_id).await?;
    }
    objects.delete(&file.object_key).await
}

/// Everything of a deleted version: what was staged, the originals, the packed file.
pub(super) async fn version(
    context: &JobContext,
    acting: &Acting,
    version: AdapterVersionId,
) -> anyhow::Result<Outcome> {
    let mut tx = context.db.jobs.read(acting).await?;
    let uploads: Vec<Uuid> = sqlx::query_scalar("select id from upload where version_id = $1")
        .bind(version.as_uuid())
        .fetch_all(&mut *tx)
        .await?;
    // Identical uploads of one tenant share their objects.
    let digest: Option<Vec<u8>> = sqlx::query_scalar(
        "select v.digest from adapter_version v
         where v.id = $1 and v.state = $2 and v.digest is not null and not exists (
           select 1 from adapter_version other
           where other.digest = v.digest and other.state in ('verifying', 'verified', 'ready'))",
    )
    .bind(version.as_uuid())
    .bind(VersionState::Deleted.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    drop(tx);

    for id in uploads {
        upload(context, acting, UploadId::from_uuid(id)).await?;
    }
    if let Some(digest) = digest {
        let digest = AdapterDigest::from_slice(&digest)?;
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            context.objects.delete(&source_key(acting.tenant, digest, file)).await?;
        }
        context.objects.delete(&artifact_key(acting.tenant, digest)).await?;
    }
    Ok(Outcome::Done)
}
