//! The parts of an upload: where to send them, and which have arrived.

use super::plan::Part;
use super::{URL_LIFE, Upload};
use crate::db::{Acting, TenantPool};
use crate::error::ApiError;
use crate::objects::Objects;
use lorikeet_contract::{AdapterVersionId, UploadId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use std::collections::HashSet;
use time::OffsetDateTime;

/// Parts reported at once.
const MAX_REPORTED: usize = 1000;

/// An upload as clients see it.
#[derive(Debug, Serialize)]
pub struct UploadView {
    pub upload_id: UploadId,
    pub version_id: AdapterVersionId,
    pub adapter: String,
    pub version: i32,
    /// open, completed or aborted
    pub state: String,
    pub part_bytes: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    pub files: Vec<FileView>,
}

#[derive(Debug, Serialize)]
pub struct FileView {
    pub name: String,
    pub bytes: u64,
    pub parts: Vec<PartView>,
}

#[derive(Debug, Serialize)]
pub struct PartView {
    pub number: i32,
    pub offset: u64,
    pub bytes: u64,
    /// PUT exactly the part's bytes here; none unless the upload is open.
    pub url: Option<String>,
    /// Its ETag has been reported.
    pub received: bool,
}

/// A part that the object store has taken.
#[derive(Debug, Deserialize)]
pub struct ReceivedPart {
    pub file: String,
    pub number: i32,
    /// As the store answered it, with or without quotes.
    pub etag: String,
    pub bytes: u64,
}

/// The upload with fresh URLs.
pub async fn view(
    db: &TenantPool,
    objects: &Objects,
    acting: &Acting,
    id: UploadId,
) -> Result<UploadView, ApiError> {
    let mut tx = db.read(acting).await?;
    let upload = Upload::find(&mut tx, id).await?;
    let received = received(&mut tx, id).await?;
    drop(tx);
    let received: HashSet<_> = received.into_iter().map(|p| (p.file, p.part_number)).collect();

    let mut files = Vec::with_capacity(upload.files.len());
    for file in upload.files.iter() {
        let mut parts = Vec::new();
        for Part { number, offset, bytes } in file.parts() {
            let (key, id) = (&file.object_key, &file.s3_upload_id);
            let url = match upload.is_open() {
                true => Some(objects.presign_part(key, id, number, bytes, URL_LIFE).await),
                false => None,
            };
            let url = url.transpose()?;
            let received = received.contains(&(file.name.clone(), number));
            parts.push(PartView { number, offset, bytes, url, received });
        }
        files.push(FileView { name: file.name.clone(), bytes: file.bytes, parts });
    }
    Ok(UploadView {
        upload_id: upload.id(),
        version_id: upload.version_id(),
        adapter: upload.adapter_name,
        version: upload.version,
        state: upload.state,
        part_bytes: upload.files.first().map(|f| f.part_bytes).unwrap_or_default(),
        expires_at: upload.expires_at,
        files,
    })
}

#[derive(sqlx::FromRow)]
pub(super) struct ReceivedRow {
    pub file: String,
    pub part_number: i32,
    pub etag: String,
}

pub(super) async fn received(
    tx: &mut PgConnection,
    upload: UploadId,
) -> Result<Vec<ReceivedRow>, sqlx::Error> {
    sqlx::query_as(
        "select file, part_number, etag from upload_part where upload_id = $1
         order by file, part_number",
    )
    .bind(upload.as_uuid())
    .fetch_all(tx)
    .await
}

/// Records parts; one that is reported again replaces the former report.
pub async fn record_parts(
    db: &TenantPool,
    acting: &Acting,
    id: UploadId,
    parts: &[ReceivedPart],
) -> Result<(), ApiError> {
    if parts.is_empty() || parts.len() > MAX_REPORTED {
        return Err(ApiError::invalid("parts", "report 1 to 1000 parts at once"));
    }
    let mut tx = db.write(acting).await?;
    let upload = Upload::find(&mut tx, id).await?;
    if !upload.is_open() {
        return Err(ApiError::UploadClosed);
    }
    for part in parts {
        let planned = upload.files.iter().find(|f| f.name == part.file);
        let planned = planned.and_then(|f| f.part(part.number)).ok_or_else(|| {
            ApiError::invalid("parts", "a part names a file or number that the upload lacks")
        })?;
        if planned.bytes != part.bytes {
            return Err(ApiError::invalid("parts", "a part has another length than planned"));
        }
        let etag = part.etag.trim_matches('"');
        if !(1..=200).contains(&etag.len()) || etag.contains(['\0', '"']) {
            return Err(ApiError::invalid("parts", "a part has no usable ETag"));
        }
        sqlx::query(
            "insert into upload_part (tenant_id, upload_id, file, part_number, etag, bytes)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (upload_id, file, part_number)
             do update set etag = excluded.etag, bytes = excluded.bytes, received_at = now()",
        )
        .bind(acting.tenant.as_uuid())
        .bind(id.as_uuid())
        .bind(&part.file)
        .bind(part.number)
        .bind(etag)
        .bind(i64::try_from(part.bytes).map_err(ApiError::internal)?)
        .execute(&mut *tx)
        .await?;
    }
    tx.audit("upload.parts", id, json!({ "count": parts.len() })).await?.commit().await?;
    Ok(())
}
