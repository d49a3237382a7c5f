//! The deny-set: access taken away beside the manifest, which says the same a moment later.

use super::view::ManifestView;
use crate::engine::Revocation;
use lorikeet_contract::link::{Revocations, revocation::Target};
use lorikeet_contract::{KeyId, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenySet {
    /// Of the last revocation taken in.
    pub seq: u64,
    keys: BTreeSet<KeyId>,
    tenants: BTreeSet<TenantId>,
}

impl DenySet {
    pub fn load(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e),
        }
    }

    pub fn save(&self, path: &Path) -> io::Result<()> {
        crate::durable::replace(path, &serde_json::to_vec(self)?)
    }

    pub fn denies(&self, key: KeyId, tenant: TenantId) -> bool {
        self.keys.contains(&key) || self.tenants.contains(&tenant)
    }

    /// Adds what was revoked and returns it. A target that does not read is skipped, loudly: the
    /// manifest still takes the access away.
    pub fn add(&mut self, revocations: &Revocations) -> Vec<Revocation> {
        let mut added = Vec::new();
        for entry in &revocations.entries {
            let target = match &entry.target {
                Some(Target::KeyId(id)) => id.parse().map(Revocation::Key),
                Some(Target::TenantId(id)) => id.parse().map(Revocation::Tenant),
                None => continue,
            };
            match target {
                Ok(revocation) => added.push(revocation),
                Err(error) => {
                    tracing::error!(seq = entry.seq, %error, "a revocation does not read")
                }
            }
        }
        for revocation in &added {
            match *revocation {
                Revocation::Key(id) => self.keys.insert(id),
                Revocation::Tenant(id) => self.tenants.insert(id),
            };
        }
        self.seq = revocations.seq;
        added
    }

    /// Drops what the manifest has settled: keys that are gone from it, and tenants that it had
    /// suspended in `before` and serves again in `now`. True when something was dropped.
    pub fn settle(&mut self, before: &ManifestView, now: &ManifestView) -> bool {
        let had = self.keys.len() + self.tenants.len();
        let (keys_before, keys_now) = (before.key_ids(), now.key_ids());
        self.keys.retain(|id| keys_now.contains(id) || !keys_before.contains(id));
        let suspended =
            |view: &ManifestView, id: &TenantId| view.tenant(*id).is_some_and(|t| t.suspended);
        self.tenants.retain(|id| !suspended(before, id) || suspended(now, id));
        had != self.keys.len() + self.tenants.len()
    }
}
