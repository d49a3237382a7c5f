//! Gives up an upload that was not completed in time.

use super::{JobContext, Outcome};
use crate::db::Acting;
use crate::uploads;
use lorikeet_contract::UploadId;

pub(super) async fn run(
    context: &JobContext,
    acting: &Acting,
    upload: UploadId,
) -> anyhow::Result<Outcome> {
    uploads::expire(&context.db.jobs, acting, upload).await?;
    Ok(Outcome::Done)
}
