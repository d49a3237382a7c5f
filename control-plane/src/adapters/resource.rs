//! A version as nodes learn of it.

use lorikeet_contract::adapter::{Inspected, LAYOUT_VERSION};
use lorikeet_contract::link::{AdapterResource, AdapterState, Artifact};
use lorikeet_contract::{AdapterId, AdapterVersionId, ArtifactDigest, TenantId};

/// Uploaded whole, not checked yet: nodes answer 409 `adapter_not_ready`.
pub fn pending(
    tenant: TenantId,
    adapter: AdapterId,
    name: &str,
    version: AdapterVersionId,
    number: i32,
) -> AdapterResource {
    AdapterResource {
        id: version.to_string(),
        tenant_id: tenant.to_string(),
        adapter_id: adapter.to_string(),
        name: name.to_owned(),
        version: number.unsigned_abs(),
        state: AdapterState::Pending.into(),
        ..AdapterResource::default()
    }
}

/// What the checks found out, and where the packed file lies.
pub struct Servable<'a> {
    pub inspected: &'a Inspected,
    pub object_key: String,
    pub bytes: u64,
    pub artifact_digest: ArtifactDigest,
}

/// `pending`, now with something to load.
pub fn servable(pending: AdapterResource, what: &Servable<'_>) -> AdapterResource {
    let plan = &what.inspected.plan;
    AdapterResource {
        digest: what.inspected.digest.as_bytes().to_vec(),
        base_weights_digest: plan.base_weights_digest.as_bytes().to_vec(),
        artifact: Some(Artifact {
            layout_version: LAYOUT_VERSION,
            object_key: what.object_key.clone(),
            bytes: what.bytes,
            digest: what.artifact_digest.as_bytes().to_vec(),
        }),
        max_rank: plan.max_rank(),
        targets: plan.targets().into_iter().map(|l| l.as_str().to_owned()).collect(),
        state: AdapterState::Servable.into(),
        ..pending
    }
}
