//! Checks a completed upload against the base model, packs it and publishes it.

use super::{Job, JobContext, Outcome};
use crate::adapters::{self, Failure, VersionState};
use crate::db::Acting;
use crate::jobs;
use crate::objects::{DownloadError, artifact_key, source_key};
use crate::uploads::PlannedFile;
use anyhow::Context;
use lorikeet_contract::adapter::files::{CONFIG_FILE, WEIGHTS_FILE};
use lorikeet_contract::adapter::{
    ContentError, Inspected, LAYOUT_VERSION, PackedArtifact, inspect, pack,
};
use lorikeet_contract::link::ResourceKind;
use lorikeet_contract::{AdapterId, AdapterVersionId, BaseModelSpec, UploadId};
use serde_json::json;
use sqlx::types::Json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// How often to look whether a node has said which base model it serves.
const WAIT_FOR_NODE: Duration = Duration::from_secs(1);

#[derive(sqlx::FromRow)]
struct Target {
    adapter_id: Uuid,
    name: String,
    version: i32,
    upload_id: Uuid,
    files: Json<Vec<PlannedFile>>,
}

pub(super) async fn run(
    context: &JobContext,
    acting: &Acting,
    version: AdapterVersionId,
) -> anyhow::Result<Outcome> {
    let mut tx = context.db.jobs.read(acting).await?;
    let target: Option<Target> = sqlx::query_as(
        "select a.id as adapter_id, a.name, v.version, u.id as upload_id, u.files
         from adapter_version v
         join adapter a on a.id = v.adapter_id
         join upload u on u.version_id = v.id and u.state = 'completed'
         where v.id = $1 and v.state = 'verifying'",
    )
    .bind(version.as_uuid())
    .fetch_optional(&mut *tx)
    .await?;
    let base = adapters::base_model(&mut tx).await?;
    drop(tx);
    // Deleted meanwhile, or done by an attempt that could not record it.
    let Some(target) = target else { return Ok(Outcome::Done) };
    let Some(base) = base else { return Ok(Outcome::Later(WAIT_FOR_NODE)) };

    let dir = tempfile::tempdir().context("a directory for the check")?;
    let checked = match check(context, &target, base, dir.path()).await? {
        Ok(checked) => checked,
        Err(failure) => {
            let verifying = VersionState::Verifying;
            adapters::fail(&context.db.jobs, acting, version, verifying, &failure).await?;
            return Ok(Outcome::Done);
        }
    };
    if claim_digest(context, acting, version, &checked).await? {
        store(context, acting, &target, &checked).await?;
        publish(context, acting, version, &target, &checked).await?;
    }
    Ok(Outcome::Done)
}

struct Checked {
    inspected: Inspected,
    packed: PackedArtifact,
    packed_path: PathBuf,
}

/// The inner error is the customer's, the outer one ours.
async fn check(
    context: &JobContext,
    target: &Target,
    base: BaseModelSpec,
    dir: &Path,
) -> anyhow::Result<Result<Checked, Failure>> {
    for file in &target.files.0 {
        let path = dir.join(match file.name.as_str() {
            CONFIG_FILE => CONFIG_FILE,
            _ => WEIGHTS_FILE,
        });
        match context.objects.download(&file.object_key, file.bytes, &path).await {
            Ok(bytes) if bytes == file.bytes => {}
            Ok(_) | Err(DownloadError::TooLarge(_)) => {
                return Ok(Err(Failure {
                    code: "size_mismatch",
                    message: format!("{} is not as long as announced: upload again", file.name),
                }));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let dir = dir.to_owned();
    let result = tokio::task::spawn_blocking(move || inspect_and_pack(&dir, &base)).await?;
    match result {
        Ok(checked) => Ok(Ok(checked)),
        Err(ContentError::Refused(refusal)) => {
            Ok(Err(Failure { code: refusal.code(), message: refusal.to_string() }))
        }
        Err(ContentError::Read(error)) => Err(error.into()),
    }
}

fn inspect_and_pack(dir: &Path, base: &BaseModelSpec) -> Result<Checked, ContentError> {
    let config = std::fs::read(dir.join(CONFIG_FILE))?;
    let mut weights = File::open(dir.join(WEIGHTS_FILE))?;
    let inspected = inspect(&config, &mut weights, base)?;
    let packed_path = dir.join("packed");
    let mut out = BufWriter::new(File::create(&packed_path)?);
    let packed = pack(&inspected.plan, inspected.digest, &mut weights, &mut out)?;
    out.flush()?;
    Ok(Checked { inspected, packed, packed_path })
}

/// Records the digest before anything is stored under it, so that erasure finds what a crash leaves
/// behind. False: the version was deleted meanwhile.
async fn claim_digest(
    context: &JobContext,
    acting: &Acting,
    version: AdapterVersionId,
    checked: &Checked,
) -> anyhow::Result<bool> {
    let digest = checked.inspected.digest;
    let mut tx = context.db.jobs.write(acting).await?;
    let claimed =
        sqlx::query("update adapter_version set digest = $2 where id = $1 and state = 'verifying'")
            .bind(version.as_uuid())
            .bind(digest.as_bytes().as_slice())
            .execute(&mut *tx)
            .await?;
    if claimed.rows_affected() == 0 {
        return Ok(false);
    }
    let detail = json!({ "digest": digest });
    tx.audit("adapter_version.accept", version, detail).await?.commit().await?;
    Ok(true)
}

async fn store(
    context: &JobContext,
    acting: &Acting,
    target: &Target,
    checked: &Checked,
) -> anyhow::Result<()> {
    let digest = checked.inspected.digest;
    for file in &target.files.0 {
        let source = source_key(acting.tenant, digest, &file.name);
        context.objects.copy(&file.object_key, &source).await?;
    }
    let key = artifact_key(acting.tenant, digest);
    context.objects.upload_file(&key, &checked.packed_path).await?;
    Ok(())
}

async fn publish(
    context: &JobContext,
    acting: &Acting,
    version: AdapterVersionId,
    target: &Target,
    checked: &Checked,
) -> anyhow::Result<()> {
    let Checked { inspected, packed, .. } = checked;
    let servable = adapters::Servable {
        inspected,
        object_key: artifact_key(acting.tenant, inspected.digest),
        bytes: packed.bytes,
        artifact_digest: packed.digest,
    };
    let targets: Vec<&str> = inspected.plan.targets().into_iter().map(|l| l.as_str()).collect();

    let mut tx = context.db.jobs.write(acting).await?;
    let adapter = AdapterId::from_uuid(target.adapter_id);
    let standing = adapters::Standing::lock(&mut tx, adapter).await?;
    let updated = sqlx::query(
        "update adapter_version set state = 'verified', verified_at = now(),
           base_weights_digest = $2, rank = $3, targets = $4, parameters = $5
         where id = $1 and state = 'verifying'",
    )
    .bind(version.as_uuid())
    .bind(inspected.plan.base_weights_digest.as_bytes().as_slice())
    .bind(i32::try_from(inspected.plan.max_rank())?)
    .bind(&targets)
    .bind(i64::try_from(packed.header.parameters())?)
    .execute(&mut *tx)
    .await?;
    // Deleted meanwhile: its erasure is enqueued already.
    if updated.rows_affected() == 0 {
        return Ok(());
    }
    sqlx::query(
        "insert into artifact (tenant_id, version_id, layout_version, object_key, bytes, digest)
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(acting.tenant.as_uuid())
    .bind(version.as_uuid())
    .bind(i32::try_from(LAYOUT_VERSION)?)
    .bind(&servable.object_key)
    .bind(i64::try_from(packed.bytes)?)
    .bind(packed.digest.as_bytes().as_slice())
    .execute(&mut *tx)
    .await?;
    let staged = Job::EraseUpload { upload: UploadId::from_uuid(target.upload_id) };
    jobs::enqueue(&mut tx, acting.tenant, &staged).await?;

    let detail = json!({ "adapter": target.name, "version": target.version });
    let mut tx = tx.audit("adapter_version.publish", version, detail).await?;
    let pending = adapters::pending(acting.tenant, adapter, &target.name, version, target.version);
    let resource = standing.apply(adapters::servable(pending, &servable));
    let revision = tx.publish(ResourceKind::Adapter, version, &resource).await?;
    adapters::set_revision(&mut tx, version, revision).await?;
    tx.commit().await?;
    Ok(())
}
