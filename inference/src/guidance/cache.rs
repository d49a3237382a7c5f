//! Compiled grammars, kept for the next request of the same tenant.

use super::compile::Compiled;
use lorikeet_contract::TenantId;
use std::collections::HashMap;
use std::sync::Arc;

/// Grammars kept of one tenant, and of all together; the one that was used longest ago goes first. One
/// that is larger than what is kept of a tenant is not kept.
const PER_TENANT: Room = Room { grammars: 16, bytes: 16 << 20 };
const IN_ALL: Room = Room { grammars: 256, bytes: 128 << 20 };

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

struct Room {
    grammars: usize,
    bytes: usize,
}

impl Cache {
    pub fn get(&mut self, key: &Key) -> Option<Arc<Compiled>> {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.last_use = self.uses;
        Some(entry.compiled.clone())
    }

    pub fn insert(&mut self, key: Key, compiled: Arc<Compiled>) {
        if compiled.bytes > PER_TENANT.bytes {
            return;
        }
        self.make_room(&PER_TENANT, compiled.bytes, |other| other.0 == key.0);
        self.make_room(&IN_ALL, compiled.bytes, |_| true);
        self.uses += 1;
        self.entries.insert(key, Entry { compiled, last_use: self.uses });
    }

    /// Room for one more grammar of so many bytes among those that `are`.
    fn make_room(&mut self, room: &Room, bytes: usize, are: impl Fn(&Key) -> bool) {
        let mut kept: Vec<(u64, Key, usize)> = self
            .entries
            .iter()
            .filter(|(key, _)| are(key))
            .map(|(key, entry)| (entry.last_use, *key, entry.compiled.bytes))
            .collect();
        kept.sort_unstable();
        let mut taken: usize = kept.iter().map(|(_, _, bytes)| bytes).sum();
        let mut count = kept.len();
        for (_, key, freed) in kept {
            if count < room.grammars && taken + bytes <= room.bytes {
                return;
            }
            self.entries.remove(&key);
            (count, taken) = (count - 1, taken - freed);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
