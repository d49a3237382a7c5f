//! Compiled grammars, kept for the next request of the same tenant.

use super::compile::Compiled;
use lorikeet_contract::TenantId;
use std::collections::HashMap;
use std::sync::Arc;

/// Grammars kept of one tenant, and of all together; the one that was used longest ago goes first.
const PER_TENANT: usize = 16;
const IN_ALL: usize = 256;

/// Tenants share nothing, so that none can tell by the time that it takes what another one asks for.
type Key = (TenantId, [u8; 32]);

#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    uses: u64,
}

struct Entry {
    compiled: Arc<Compiled>,
    last_use: u64,
}

impl Cache {
    pub fn get(&mut self, key: &Key) -> Option<Arc<Compiled>> {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.last_use = self.uses;
        Some(entry.compiled.clone())
    }

    pub fn insert(&mut self, key: Key, compiled: Arc<Compiled>) {
        let is_tenants = |(other, _): &(&Key, &Entry)| other.0 == key.0;
        if self.entries.iter().filter(is_tenants).count() >= PER_TENANT {
            self.evict(|other| other.0 == key.0);
        } else if self.entries.len() >= IN_ALL {
            self.evict(|_| true);
        }
        self.uses += 1;
        self.entries.insert(key, Entry { compiled, last_use: self.uses });
    }

    fn evict(&mut self, may_go: impl Fn(&Key) -> bool) {
        let candidates = self.entries.iter().filter(|(key, _)| may_go(key));
        if let Some(oldest) = candidates.min_by_key(|(_, e)| e.last_use).map(|(key, _)| *key) {
            self.entries.remove(&oldest);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
