//! The manifest decoded and indexed for requests. Pure and immutable: a change makes a new view.

use crate::adapters::{AdapterKey, AdapterManifest, Pin};
use crate::engine::Revocation;
use crate::share::TenantShare;
use lorikeet_contract::key::Scope;
use lorikeet_contract::link::Rejection;
use lorikeet_contract::{AdapterVersionId, KeyId, TenantId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub suspended: bool,
    /// Without contact to the control plane for this long, the tenant is refused.
    pub max_staleness: Option<Duration>,
    pub limits: TenantLimits,
}

/// What an operator allows one tenant. `None` is no limit of the tenant's own; zero allows nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Requests at once on this node.
    pub max_concurrency: Option<u32>,
    /// Over all nodes.
    pub requests_per_minute: Option<u64>,
    /// Over all nodes; prompt and completion.
    pub tokens_per_minute: Option<u64>,
    /// At least 1.
    pub weight: Option<u32>,
    /// Of the tenant's adapters in this node's host memory.
    pub adapter_host_bytes: Option<u64>,
    /// Of the tenant's adapters on this node's device.
    pub adapter_device_bytes: Option<u64>,
}

impl TenantLimits {
    /// What the engine divides by.
    pub fn share(&self) -> TenantShare {
        TenantShare {
            weight: self.weight.unwrap_or(TenantShare::default().weight),
            host_bytes: self.adapter_host_bytes,
            device_bytes: self.adapter_device_bytes,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub id: KeyId,
    pub tenant_id: TenantId,
    pub secret_hash: [u8; 32],
    pub scopes: Vec<Scope>,
    pub expires_unix_ms: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterVersion {
    pub id: AdapterVersionId,
    pub version: u32,
    pub state: VersionState,
    /// By an operator: to be loaded ahead and kept while it fits.
    pub pinned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionState {
    /// Uploaded and not verified yet.
    Pending,
    Servable(Arc<AdapterManifest>),
    Disabled,
    /// Not usable by this node, and why: acknowledged as rejected.
    Rejected(String),
}

/// One name of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adapter {
    pub versions: BTreeMap<u32, AdapterVersion>,
    pub aliases: BTreeMap<String, AdapterVersionId>,
}

impl Adapter {
    /// The version that the bare name calls: the newest servable one, else the newest.
    pub fn current(&self) -> Option<&AdapterVersion> {
        let servable = |v: &&AdapterVersion| matches!(v.state, VersionState::Servable(_));
        self.versions.values().rev().find(servable).or_else(|| self.versions.values().next_back())
    }

    /// What its name and its aliases call, each once.
    fn called(&self) -> impl Iterator<Item = &AdapterVersion> {
        let current = self.current().map(|version| version.id);
        let is_called = move |id| current == Some(id) || self.aliases.values().any(|a| *a == id);
        self.versions.values().filter(move |version| is_called(version.id))
    }

    /// `selector` is what follows the `@`: a version number or an alias.
    pub fn select(&self, selector: &str) -> Option<&AdapterVersion> {
        if let Ok(version) = selector.parse() {
            return self.versions.get(&version);
        }
        let id = self.aliases.get(selector)?;
        self.versions.values().find(|v| v.id == *id)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManifestView {
    pub(super) tenants: HashMap<TenantId, Tenant>,
    /// By the 8 characters in the key.
    pub(super) keys: HashMap<String, Key>,
    pub(super) adapters: HashMap<TenantId, BTreeMap<String, Adapter>>,
    /// What this node cannot use. Everything else is served all the same.
    pub(super) rejected: Vec<Rejection>,
}

/// What a change took away: requests that run on it end, bytes that it left behind go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    pub access: Vec<Revocation>,
    pub adapters: Vec<AdapterKey>,
}

impl ManifestView {
    pub fn tenant(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.get(&id)
    }

    pub fn key(&self, key_id: &str) -> Option<&Key> {
        self.keys.get(key_id)
    }

    pub(super) fn key_ids(&self) -> HashSet<KeyId> {
        self.keys.values().map(|key| key.id).collect()
    }

    pub fn adapters(&self, tenant: TenantId) -> impl Iterator<Item = (&str, &Adapter)> {
        let of_tenant = self.adapters.get(&tenant).into_iter().flatten();
        of_tenant.map(|(name, adapter)| (name.as_str(), adapter))
    }

    pub fn adapter(&self, tenant: TenantId, name: &str) -> Option<&Adapter> {
        self.adapters.get(&tenant)?.get(name)
    }

    /// The version that `name`, `name@3` or `name@alias` means inside a tenant.
    pub fn version(&self, tenant: TenantId, model: &str) -> Option<&AdapterVersion> {
        let (name, selector) = match model.rsplit_once('@') {
            Some((name, selector)) => (name, Some(selector)),
            None => (model, None),
        };
        let adapter = self.adapters.get(&tenant)?.get(name)?;
        match selector {
            Some(selector) => adapter.select(selector),
            None => adapter.current(),
        }
    }

    pub fn rejected(&self) -> &[Rejection] {
        &self.rejected
    }

    /// What was there in `before` and is not any more.
    pub fn withdrawn_since(&self, before: &ManifestView) -> Withdrawn {
        let kept_keys = self.key_ids();
        let keys = before.key_ids().into_iter().filter(|id| !kept_keys.contains(id));
        let served = |view: &ManifestView, id: &TenantId| {
            view.tenants.get(id).is_some_and(|tenant| !tenant.suspended)
        };
        let tenants = before
            .tenants
            .keys()
            .filter(|id| served(before, id) && !served(self, id))
            .map(|id| Revocation::Tenant(*id));
        let kept_adapters = self.servable();
        let mut adapters: Vec<_> =
            before.servable().into_iter().filter(|key| !kept_adapters.contains(key)).collect();
        adapters.sort_unstable();
        Withdrawn { access: keys.map(Revocation::Key).chain(tenants).collect(), adapters }
    }

    /// What to load ahead and keep, oldest first: of each pinned adapter the version that its name
    /// calls, and those that aliases name.
    pub fn pins(&self) -> Vec<Pin> {
        let mut pins: Vec<(AdapterVersionId, Pin)> = Vec::new();
        for (tenant, adapters) in &self.adapters {
            let share = self.tenant(*tenant).map(|t| t.limits.share()).unwrap_or_default();
            for adapter in adapters.values() {
                for version in adapter.called().filter(|version| version.pinned) {
                    if let VersionState::Servable(manifest) = &version.state {
                        pins.push((version.id, Pin { manifest: manifest.clone(), share }));
                    }
                }
            }
        }
        pins.sort_unstable_by_key(|(id, _)| *id);
        // Versions that share their content share its place.
        let mut seen = HashSet::new();
        pins.retain(|(_, pin)| seen.insert(pin.manifest.key));
        pins.into_iter().map(|(_, pin)| pin).collect()
    }

    /// Several versions may share their content, and then their bytes.
    pub(super) fn servable(&self) -> HashSet<AdapterKey> {
        let versions =
            self.adapters.values().flat_map(BTreeMap::values).flat_map(|a| a.versions.values());
        versions
            .filter_map(|version| match &version.state {
                VersionState::Servable(manifest) => Some(manifest.key),
                _ => None,
            })
            .collect()
    }
}
