//! From resources as they travel to the view. A resource that does not read, or that this node cannot
//! use, is rejected with the reason and leaves the others alone.

use super::view::{AdapterVersion, Key, ManifestView, Tenant, TenantLimits, VersionState};
use crate::adapters::{AdapterKey, AdapterManifest};
use lorikeet_contract::adapter::LAYOUT_VERSION;
use lorikeet_contract::key::Scope;
use lorikeet_contract::link::{
    AdapterResource, AdapterState, AliasResource, Artifact, KeyResource, Limits, Rejection,
    ResourceKind, TenantResource,
};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::{AdapterDigest, ArtifactDigest, TenantId, WeightsDigest};
use prost::Message;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

impl ManifestView {
    /// `base` is the model that this node serves.
    pub fn new(state: &ManifestState, base: WeightsDigest) -> Self {
        let mut view = Self::default();
        for (kind, id, payload) in state.iter() {
            let taken = match ResourceKind::try_from(kind) {
                Ok(ResourceKind::Tenant) => view.take_tenant(id, payload),
                Ok(ResourceKind::Key) => view.take_key(id, payload),
                Ok(ResourceKind::Adapter) => view.take_adapter(id, payload, base),
                Ok(ResourceKind::Alias) => view.take_alias(id, payload),
                Ok(ResourceKind::Unspecified) | Err(_) => {
                    Err(format!("this node does not know resources of kind {kind}"))
                }
            };
            if let Err(reason) = taken {
                view.rejected.push(Rejection { kind, id: id.to_owned(), reason });
            }
        }
        view
    }

    fn take_tenant(&mut self, id: &str, payload: &[u8]) -> Result<(), String> {
        let resource = read::<TenantResource>(payload)?;
        same_id(id, &resource.id)?;
        let tenant = Tenant {
            suspended: resource.suspended,
            max_staleness: resource.max_staleness_s.map(Duration::from_secs),
            limits: resource.limits.map(tenant_limits).unwrap_or_default(),
        };
        self.tenants.insert(parsed(&resource.id)?, tenant);
        Ok(())
    }

    fn take_key(&mut self, id: &str, payload: &[u8]) -> Result<(), String> {
        let resource = read::<KeyResource>(payload)?;
        same_id(id, &resource.id)?;
        let key = Key {
            id: parsed(&resource.id)?,
            tenant_id: parsed(&resource.tenant_id)?,
            secret_hash: resource
                .secret_hash
                .try_into()
                .map_err(|_| "secret_hash is not 32 bytes".to_owned())?,
            // A scope that this build does not know allows nothing here.
            scopes: resource.scopes.iter().filter_map(|s| Scope::parse(s)).collect(),
            expires_unix_ms: resource.expires_unix_ms,
        };
        match self.keys.entry(resource.key_id) {
            Entry::Occupied(taken) => Err(format!("key id {} is another key's", taken.key())),
            Entry::Vacant(free) => {
                free.insert(key);
                Ok(())
            }
        }
    }

    /// An adapter that is rejected keeps its name, so that its owner is told why.
    fn take_adapter(
        &mut self,
        id: &str,
        payload: &[u8],
        base: WeightsDigest,
    ) -> Result<(), String> {
        let resource = read::<AdapterResource>(payload)?;
        same_id(id, &resource.id)?;
        let tenant_id: TenantId = parsed(&resource.tenant_id)?;
        let (name, version, pinned) = (resource.name.clone(), resource.version, resource.pinned);
        let version_id = parsed(&resource.id)?;
        let (state, taken) = match version_state(resource, tenant_id, base) {
            Ok(state) => (state, Ok(())),
            Err(reason) => (VersionState::Rejected(reason.clone()), Err(reason)),
        };
        let adapter = self.adapters.entry(tenant_id).or_default().entry(name).or_default();
        adapter.versions.insert(version, AdapterVersion { id: version_id, version, state, pinned });
        taken
    }

    fn take_alias(&mut self, id: &str, payload: &[u8]) -> Result<(), String> {
        let resource = read::<AliasResource>(payload)?;
        same_id(id, &resource.id)?;
        let version_id = parsed(&resource.version_id)?;
        let of_tenant = self.adapters.entry(parsed(&resource.tenant_id)?).or_default();
        let adapter = of_tenant.entry(resource.adapter_name).or_default();
        adapter.aliases.insert(resource.alias, version_id);
        Ok(())
    }
}

fn tenant_limits(limits: Limits) -> TenantLimits {
    TenantLimits {
        max_concurrency: limits.max_concurrency,
        requests_per_minute: limits.requests_per_minute,
        tokens_per_minute: limits.tokens_per_minute,
        weight: limits.weight.map(|weight| weight.max(1)),
        adapter_host_bytes: limits.adapter_host_bytes,
        adapter_device_bytes: limits.adapter_device_bytes,
    }
}

fn version_state(
    resource: AdapterResource,
    tenant: TenantId,
    base: WeightsDigest,
) -> Result<VersionState, String> {
    match resource.state() {
        AdapterState::Pending => return Ok(VersionState::Pending),
        AdapterState::Disabled => return Ok(VersionState::Disabled),
        AdapterState::Servable => {}
        AdapterState::Unspecified => {
            return Err(format!("this node does not know adapter state {}", resource.state));
        }
    }
    let for_base = WeightsDigest::from_slice(&resource.base_weights_digest)
        .map_err(|e| format!("base_weights_digest: {e}"))?;
    if for_base != base {
        return Err(format!(
            "the adapter is for the base model {}, this node serves {}",
            for_base.short(),
            base.short()
        ));
    }
    let digest = AdapterDigest::from_slice(&resource.digest).map_err(|e| format!("digest: {e}"))?;
    let artifact = resource.artifact.ok_or("the adapter has no artifact")?;
    let artifact_digest = check_artifact(&artifact)?;
    Ok(VersionState::Servable(Arc::new(AdapterManifest {
        key: AdapterKey { tenant, digest },
        object_key: artifact.object_key,
        bytes: artifact.bytes,
        artifact_digest,
        max_rank: resource.max_rank,
    })))
}

fn check_artifact(artifact: &Artifact) -> Result<ArtifactDigest, String> {
    if artifact.layout_version != LAYOUT_VERSION {
        return Err(format!(
            "the adapter is packed in layout {}, this node reads layout {LAYOUT_VERSION}",
            artifact.layout_version
        ));
    }
    ArtifactDigest::from_slice(&artifact.digest).map_err(|e| format!("artifact digest: {e}"))
}

fn read<M: Message + Default>(payload: &[u8]) -> Result<M, String> {
    M::decode(payload).map_err(|e| format!("the payload does not read: {e}"))
}

fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| e.to_string())
}

fn same_id(resource: &str, payload: &str) -> Result<(), String> {
    if resource == payload {
        return Ok(());
    }
    Err(format!("the payload is of {payload}"))
}
