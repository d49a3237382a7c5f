//! A tier's budget, who has a part of it, and how room is made in it.

use crate::adapters::AdapterKey;
use lorikeet_contract::TenantId;
use std::collections::HashMap;
use std::time::Duration;

/// Bytes that take as long to load as a load takes to begin: a small adapter is worth more for each
/// byte that it holds than a large one.
const LOAD_OVERHEAD: u64 = 8 << 20;

#[derive(Debug)]
pub(super) struct Tier {
    /// Reservations included. `used <= capacity`.
    pub used: u64,
    pub capacity: u64,
    pub members: Vec<AdapterKey>,
    /// Sums to `used`.
    tenants: HashMap<TenantId, u64>,
}

impl Tier {
    pub fn new(capacity: u64) -> Self {
        Self { used: 0, capacity, members: Vec::new(), tenants: HashMap::new() }
    }

    pub fn free(&self) -> u64 {
        self.capacity - self.used
    }

    pub fn used_by(&self, tenant: TenantId) -> u64 {
        self.tenants.get(&tenant).copied().unwrap_or_default()
    }

    pub fn reserve(&mut self, key: AdapterKey, bytes: u64) {
        debug_assert!(bytes <= self.free());
        self.used += bytes;
        *self.tenants.entry(key.tenant).or_default() += bytes;
        self.members.push(key);
    }

    pub fn release(&mut self, key: AdapterKey, bytes: u64) {
        self.used -= bytes;
        if let Some(used) = self.tenants.get_mut(&key.tenant) {
            *used -= bytes;
            if *used == 0 {
                self.tenants.remove(&key.tenant);
            }
        }
        if let Some(at) = self.members.iter().position(|member| *member == key) {
            self.members.swap_remove(at);
        }
    }

    /// What lacks for `bytes` more of a tenant that may have no more than `quota`.
    pub fn shortage(&self, tenant: TenantId, bytes: u64, quota: Option<u64>) -> Shortage {
        let own = quota.map_or(0, |quota| (self.used_by(tenant) + bytes).saturating_sub(quota));
        Shortage { tenant, own, bytes: bytes.saturating_sub(self.free()), slots: 0 }
    }
}

/// Whether something new has its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Now,
    /// Once what is on its way out is gone.
    Coming,
    /// Not until others let go.
    Full,
    /// Not until the tenant's own adapters let go: nobody else needs to wait for that.
    OverQuota,
}

/// What must leave a tier before something new has its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shortage {
    tenant: TenantId,
    /// Bytes that its own tenant must let go of.
    own: u64,
    /// Bytes that anybody must, the tenant included.
    pub bytes: u64,
    /// Places in the device's tables, likewise.
    pub slots: usize,
}

impl Shortage {
    pub fn is_none(&self) -> bool {
        self.own == 0 && self.bytes == 0 && self.slots == 0
    }

    /// Neither places nor a tenant's own bytes lack.
    pub fn is_of_bytes_alone(&self) -> bool {
        self.own == 0 && self.slots == 0
    }

    /// One member with so many bytes leaves.
    pub fn ease(&mut self, key: AdapterKey, bytes: u64) {
        if key.tenant == self.tenant {
            self.own = self.own.saturating_sub(bytes);
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.slots = self.slots.saturating_sub(1);
    }

    /// As many candidates, in their order, as it takes; the tenant's own first where its quota
    /// lacks. An error when all are too few.
    pub fn cover(mut self, candidates: &[(AdapterKey, u64)]) -> Result<Vec<AdapterKey>, Room> {
        let mut chosen = Vec::new();
        let tenant = self.tenant;
        for (key, bytes) in candidates.iter().filter(|(key, _)| key.tenant == tenant) {
            if self.own == 0 {
                break;
            }
            // One may stand there twice: unneeded, and still among those that wait.
            if !chosen.contains(key) {
                self.ease(*key, *bytes);
                chosen.push(*key);
            }
        }
        if self.own > 0 {
            return Err(Room::OverQuota);
        }
        for (key, bytes) in candidates {
            if self.is_none() {
                break;
            }
            if !chosen.contains(key) {
                self.ease(*key, *bytes);
                chosen.push(*key);
            }
        }
        if self.is_none() { Ok(chosen) } else { Err(Room::Full) }
    }
}

/// How well an adapter's place can be done without: its idle time over what keeping it is worth,
/// which grows with its tenant's weight and with the time to have each of its bytes back. Equal
/// weights and sizes make this the least recently used first.
pub(super) fn dispensability(idle: Duration, bytes: u64, weight: u32) -> u128 {
    let worth = u128::from(weight.max(1)) * u128::from(bytes.saturating_add(LOAD_OVERHEAD));
    // The factor keeps small quotients apart; 2^24 x 2^64 ns x 2^40 bytes fit.
    (idle.as_nanos() << 24) * u128::from(bytes.clamp(1, 1 << 40)) / worth
}
