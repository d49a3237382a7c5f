//! Uploads: a version's files travel from the customer to the object store in presigned parts.
//!
//! `start` refuses what can be refused without the data and hands out the parts; the client reports
//! each part's ETag (the store cannot be asked for it everywhere); `complete` puts the parts
//! together and has the version checked. An upload that is not completed expires.

mod complete;
mod end;
mod parts;
mod plan;
mod start;

pub use complete::complete;
pub use end::{cancel, expire};
pub use parts::{ReceivedPart, UploadView, record_parts, view};
pub use plan::PlannedFile;
pub use start::{FileToUpload, NewUpload, start};

use crate::error::ApiError;
use lorikeet_contract::{AdapterVersionId, UploadId};
use sqlx::PgConnection;
use sqlx::types::Json;
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

/// From start to completion.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Of a presigned URL; a new look at the upload gives fresh ones.
const URL_LIFE: Duration = Duration::from_secs(3600);

/// An upload's row with the version that it brings.
#[derive(Debug, sqlx::FromRow)]
struct Upload {
    id: Uuid,
    version_id: Uuid,
    state: String,
    files: Json<Vec<PlannedFile>>,
    expires_at: OffsetDateTime,
    adapter_id: Uuid,
    adapter_name: String,
    version: i32,
}

impl Upload {
    /// Inside the transaction's tenant; another tenant's is not found.
    async fn find(tx: &mut PgConnection, id: UploadId) -> Result<Self, ApiError> {
        let upload = sqlx::query_as(
            "select u.id, u.version_id, u.state, u.files, u.expires_at, a.id as adapter_id,
                    a.name as adapter_name, v.version
             from upload u
             join adapter_version v on v.id = u.version_id
             join adapter a on a.id = v.adapter_id
             where u.id = $1",
        )
        .bind(id.as_uuid())
        .fetch_one(tx)
        .await?;
        Ok(upload)
    }

    /// Before the upload's own row changes: rows are locked in the order adapter, version, upload, by
    /// whoever deletes an adapter too, or two of them could wait for each other.
    async fn lock_version(&self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query("select from adapter_version where id = $1 for update")
            .bind(self.version_id)
            .execute(tx)
            .await
            .map(drop)
    }

    fn id(&self) -> UploadId {
        UploadId::from_uuid(self.id)
    }

    fn version_id(&self) -> AdapterVersionId {
        AdapterVersionId::from_uuid(self.version_id)
    }

    fn is_open(&self) -> bool {
        self.state == "open" && self.expires_at > OffsetDateTime::now_utc()
    }
}
