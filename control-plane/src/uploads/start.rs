//! The beginning of an upload: checks, quotas, the version's row, the parts.

use super::LIFE;
use super::parts::{UploadView, view};
use super::plan::{PART_BYTES, PlannedFile};
use crate::adapters;
use crate::db::{Acting, TenantPool};
use crate::error::ApiError;
use crate::jobs::{self, Job};
use crate::objects::{Objects, staged_key};
use base64::prelude::{BASE64_STANDARD, Engine};
use lorikeet_contract::adapter::{AdapterConfig, AdapterError, AdapterPlan, Header, files};
use lorikeet_contract::{AdapterVersionId, BaseModelSpec, UploadId};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

/// Uploads that a tenant may have open; more are refused.
const MAX_OPEN_UPLOADS: i64 = 20;

#[derive(Deserialize)]
pub struct NewUpload {
    files: Vec<FileToUpload>,
    /// The text of adapter_config.json.
    config: Option<Box<RawValue>>,
    /// Base64 of the safetensors file's first `8 + header length` bytes.
    header: Option<String>,
}

#[derive(Deserialize)]
pub struct FileToUpload {
    name: String,
    bytes: u64,
}

/// Makes the next version of the adapter `name`, which need not exist, and an upload for it.
pub async fn start(
    db: &TenantPool,
    objects: &Objects,
    acting: &Acting,
    name: &str,
    request: NewUpload,
) -> Result<UploadView, ApiError> {
    if !adapters::is_name(name) {
        return Err(ApiError::invalid(
            "name",
            "a name has 1 to 63 lower-case letters, digits, dots, dashes and underscores, and \
             starts with a letter or digit",
        ));
    }
    files::check(request.files.iter().map(|f| (f.name.as_str(), f.bytes)))?;
    let base = adapters::base_model(&mut *db.read(acting).await?).await?;
    let files = precheck(request, base).await?;

    let upload = UploadId::new();
    let mut planned = Vec::with_capacity(files.len());
    for file in files {
        let object_key = staged_key(acting.tenant, upload, &file.name);
        let s3_upload_id = match objects.start_multipart(&object_key).await {
            Ok(id) => id,
            Err(error) => {
                abort(objects, &planned).await;
                return Err(error.into());
            }
        };
        planned.push(PlannedFile {
            name: file.name,
            bytes: file.bytes,
            object_key,
            s3_upload_id,
            part_bytes: PART_BYTES,
        });
    }
    if let Err(error) = insert(db, acting, name, upload, &planned).await {
        abort(objects, &planned).await;
        return Err(error);
    }
    view(db, objects, acting, upload).await
}

/// Best effort: what is left costs the store a little and harms nobody.
async fn abort(objects: &Objects, planned: &[PlannedFile]) {
    for file in planned {
        if let Err(error) = objects.abort_multipart(&file.object_key, &file.s3_upload_id).await {
            tracing::warn!(%error, "an upload that did not begin is left in the object store");
        }
    }
}

/// All checks that configuration and header allow. Off the async threads: patterns cost time.
async fn precheck(
    request: NewUpload,
    base: Option<BaseModelSpec>,
) -> Result<Vec<FileToUpload>, ApiError> {
    let NewUpload { files, config, header } = request;
    let weights = files.iter().find(|f| f.name == files::WEIGHTS_FILE);
    let file_len = weights.map(|f| f.bytes).unwrap_or_default();
    let header = header
        .map(|text| BASE64_STANDARD.decode(text))
        .transpose()
        .map_err(|_| ApiError::invalid("header", "header is not base64"))?;
    let check = move || -> Result<(), AdapterError> {
        let config = config.map(|raw| AdapterConfig::parse(raw.get().as_bytes())).transpose()?;
        let header = header.map(|bytes| Header::parse(&bytes, file_len)).transpose()?;
        if let (Some(config), Some(header), Some(base)) = (config, header, base) {
            AdapterPlan::new(&config, &header, &base)?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(check).await.map_err(ApiError::internal)??;
    Ok(files)
}

async fn insert(
    db: &TenantPool,
    acting: &Acting,
    name: &str,
    upload: UploadId,
    files: &[PlannedFile],
) -> Result<(), ApiError> {
    let bytes = files.iter().map(|f| f.bytes).sum::<u64>();
    let bytes = i64::try_from(bytes).map_err(ApiError::internal)?;
    let mut tx = db.write(acting).await?;
    refuse_beyond_quota(&mut tx, name, bytes).await?;

    let adapter: Uuid = sqlx::query_scalar(
        "insert into adapter (id, tenant_id, name) values ($1, $2, $3)
         on conflict (tenant_id, name) where deleted_at is null do update set name = excluded.name
         returning id",
    )
    .bind(Uuid::now_v7())
    .bind(acting.tenant.as_uuid())
    .bind(name)
    .fetch_one(&mut *tx)
    .await?;
    let version = AdapterVersionId::new();
    sqlx::query(
        "insert into adapter_version
           (id, tenant_id, adapter_id, version, state, source_bytes, created_by)
         select $1, $2, $3, coalesce(max(version), 0) + 1, 'uploading', $4, $5
         from adapter_version where adapter_id = $3",
    )
    .bind(version.as_uuid())
    .bind(acting.tenant.as_uuid())
    .bind(adapter)
    .bind(bytes)
    .bind(acting.actor.to_string())
    .execute(&mut *tx)
    .await?;
    let expires_at = OffsetDateTime::now_utc() + LIFE;
    sqlx::query(
        "insert into upload (id, tenant_id, version_id, state, files, expires_at)
         values ($1, $2, $3, 'open', $4, $5)",
    )
    .bind(upload.as_uuid())
    .bind(acting.tenant.as_uuid())
    .bind(version.as_uuid())
    .bind(Json(files))
    .bind(expires_at)
    .execute(&mut *tx)
    .await?;
    jobs::enqueue_at(&mut tx, acting.tenant, &Job::ExpireUpload { upload }, expires_at).await?;
    let detail = json!({ "adapter": name, "version_id": version, "bytes": bytes });
    tx.audit("upload.start", upload, detail).await?.commit().await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Use {
    other_adapters: i64,
    bytes: i64,
    open_uploads: i64,
}

/// Locks the tenant's row, so that two uploads at once cannot both take the last room.
async fn refuse_beyond_quota(
    tx: &mut PgConnection,
    name: &str,
    bytes: i64,
) -> Result<(), ApiError> {
    let (max_adapters, max_bytes): (i32, i64) =
        sqlx::query_as("select max_adapters, max_adapter_bytes from tenant for no key update")
            .fetch_one(&mut *tx)
            .await?;
    let used: Use = sqlx::query_as(
        "select
           (select count(*) from adapter where deleted_at is null and name <> $1) as other_adapters,
           (select coalesce(sum(source_bytes), 0)::bigint from adapter_version
            where state not in ('failed', 'deleted')) as bytes,
           (select count(*) from upload where state = 'open') as open_uploads",
    )
    .bind(name)
    .fetch_one(tx)
    .await?;
    let exceeded = |what, limit| Err(ApiError::QuotaExceeded { what, limit });
    if used.other_adapters >= i64::from(max_adapters) {
        return exceeded("adapters", max_adapters.into());
    }
    if used.bytes.saturating_add(bytes) > max_bytes {
        return exceeded("bytes of adapters", max_bytes);
    }
    if used.open_uploads >= MAX_OPEN_UPLOADS {
        return exceeded("unfinished uploads", MAX_OPEN_UPLOADS);
    }
    Ok(())
}
