//! Work that is not done inside a request: enqueued in the transaction that makes it necessary, run
//! by any control-plane process, safe to repeat.
//!
//! Jobs of one tenant run one at a time. So no tenant keeps others waiting, and two jobs never
//! touch one tenant's objects at once.

mod erase;
mod expire;
mod queue;
mod verify;
mod worker;

pub use queue::{enqueue, enqueue_at};
pub use worker::run;

use crate::adapters::{self, VersionState};
use crate::db::{Acting, Db};
use crate::objects::Objects;
use lorikeet_contract::{AdapterVersionId, TenantId, UploadId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What is to be done, for the tenant of the job's row. Holds ids only: what they stand for is read
/// when the job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "payload", rename_all = "snake_case")]
pub enum Job {
    /// Check a completed upload, pack it and publish it.
    VerifyAdapter { version: AdapterVersionId },
    /// Give up an upload that was not completed in time.
    ExpireUpload { upload: UploadId },
    /// Delete what was staged.
    EraseUpload { upload: UploadId },
    /// Delete a version's bytes, unless another version has the same content.
    EraseVersion { version: AdapterVersionId },
}

/// What jobs work with.
#[derive(Clone)]
pub struct JobContext {
    pub db: Db,
    pub objects: Objects,
}

enum Outcome {
    Done,
    /// Something else has to happen first; not counted as an attempt.
    Later(Duration),
}

impl Job {
    async fn run(&self, context: &JobContext, acting: &Acting) -> anyhow::Result<Outcome> {
        match *self {
            Self::VerifyAdapter { version } => verify::run(context, acting, version).await,
            Self::ExpireUpload { upload } => expire::run(context, acting, upload).await,
            Self::EraseUpload { upload } => erase::upload(context, acting, upload).await,
            Self::EraseVersion { version } => erase::version(context, acting, version).await,
        }
    }

    /// After the last attempt: whoever waits for the job must be told.
    async fn give_up(&self, context: &JobContext, tenant: TenantId) -> anyhow::Result<()> {
        let Self::VerifyAdapter { version } = *self else { return Ok(()) };
        let failure = adapters::Failure {
            code: "check_failed",
            message: "the upload could not be checked because of a fault on our side: upload it \
                      again"
                .into(),
        };
        let (pool, acting) = (&context.db.jobs, Acting::system(tenant));
        Ok(adapters::fail(pool, &acting, version, VersionState::Verifying, &failure).await?)
    }
}
