//! Pinned adapters: loaded ahead and kept in host and device memory, as far as they fit.
//!
//! A pin counts as a demand that never ends, and its place is not given away. Pins are held in their
//! order while they fit their tenant's quotas and [`PINNED_PART`] of the node's host memory, device
//! memory and slots; the rest is everybody's. One that does not fit is refused: the adapter is then
//! loaded on demand like any other, and operators are told. An adapter so large that it has no room
//! beside the pins even alone displaces them, the most dispensable first; they come back when
//! nobody needs it any more. Sooner, the two would displace each other in turns, each of which costs the
//! others a turn.

use super::{Residency, TenantShare};
use crate::adapters::{AdapterKey, AdapterManifest};
use lorikeet_contract::TenantId;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Pins hold at most a half.
const PINNED_PART: u64 = 2;

/// An adapter that an operator has pinned, with what its tenant is entitled to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub manifest: Arc<AdapterManifest>,
    pub share: TenantShare,
}

/// What has become of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinState {
    Held,
    Refused(PinRefusal),
}

/// Why a pin is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinRefusal {
    /// The pins before it leave too little of the pins' part of the node.
    HostMemory {
        part: u64,
    },
    DeviceMemory {
        part: u64,
    },
    Slots {
        part: usize,
    },
    /// The tenant's pins before it leave too little of its quota.
    HostQuota {
        quota: u64,
    },
    DeviceQuota {
        quota: u64,
    },
}

impl fmt::Display for PinRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostMemory { part } => {
                write!(f, "pins may take {part} bytes of host memory, and no more is left of them")
            }
            Self::DeviceMemory { part } => {
                write!(f, "pins may take {part} bytes of the device, and no more is left of them")
            }
            Self::Slots { part } => write!(f, "pins may take {part} slots, and none is left"),
            Self::HostQuota { quota } => {
                write!(f, "its tenant may have {quota} bytes in host memory")
            }
            Self::DeviceQuota { quota } => {
                write!(f, "its tenant may have {quota} bytes on the device")
            }
        }
    }
}

/// Bytes of held pins.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    pub host: u64,
    pub device: u64,
    pub slots: usize,
}

#[derive(Debug, Default)]
pub(super) struct Pins {
    pins: Vec<Pin>,
    pub all: Held,
    pub tenants: HashMap<TenantId, Held>,
    /// Which pins are held is to be decided anew.
    pub stale: bool,
}

impl Pins {
    pub fn drop_pin(&mut self, key: AdapterKey) {
        let before = self.pins.len();
        self.pins.retain(|pin| pin.manifest.key != key);
        self.stale |= self.pins.len() != before;
    }

    /// Held for a tenant.
    pub fn of(&self, tenant: TenantId) -> Held {
        self.tenants.get(&tenant).copied().unwrap_or_default()
    }
}

impl Residency {
    /// Replaces the pins. The order is that in which they are held while they fit.
    pub fn pin(&mut self, pins: Vec<Pin>, now: Instant) {
        for Pin { manifest, .. } in std::mem::take(&mut self.pins.pins) {
            if let Some(entry) = self.entries.get_mut(&manifest.key) {
                entry.pin = None;
            }
        }
        for Pin { manifest, share } in &pins {
            self.shares.insert(manifest.key.tenant, *share);
            self.know(manifest, now).forgotten = false;
        }
        self.forgotten.retain(|key| self.entries.get(key).is_some_and(|entry| entry.forgotten));
        self.pins.pins = pins;
        self.pins.stale = true;
    }

    /// Decides which pins are held when something that this rests on has changed, and wants those
    /// that are not in place, unless an adapter is needed that displaces them.
    pub(super) fn settle_pins(&mut self, now: Instant) {
        if std::mem::take(&mut self.pins.stale) {
            self.hold_pins();
            self.changes += 1;
        }
        let is_displaced = self.pins.all.slots > 0 && self.is_displacing_needed();
        for Pin { manifest, .. } in &self.pins.pins {
            let Some(entry) = self.entries.get_mut(&manifest.key) else { continue };
            if !entry.is_held() {
                continue;
            }
            entry.is_displaced = is_displaced;
            if entry.failure.as_ref().is_some_and(|failure| failure.retry_at <= now) {
                entry.failure = None;
            }
            if entry.waits_for_device() && !self.wanted.contains(&manifest.key) {
                self.wanted.push_back(manifest.key);
            }
        }
    }

    fn is_displacing_needed(&self) -> bool {
        let places = self.wanted.iter().chain(&self.device.members);
        let needed = places.filter_map(|key| Some((*key, self.entries.get(key)?)));
        let mut needed = needed.filter(|(_, entry)| entry.is_demanded() && !entry.is_held());
        needed.any(|(key, entry)| {
            let Some(host) = entry.manifest.as_ref().map(|manifest| manifest.bytes) else {
                return false;
            };
            self.displaces_pins_in_host(key, host)
                || self.displaces_pins_on_device(key, entry.device_size.unwrap_or(host))
        })
    }

    fn hold_pins(&mut self) {
        (self.pins.all, self.pins.tenants) = Default::default();
        for at in 0..self.pins.pins.len() {
            let key = self.pins.pins[at].manifest.key;
            let host = self.pins.pins[at].manifest.bytes;
            let entry = self.entries.get(&key);
            // Until it has been read its size on the device is taken to be the file's.
            let device = entry.and_then(|entry| entry.device_size).unwrap_or(host);
            let refusal = self.pin_refusal(key.tenant, host, device);
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.pin = Some(refusal.map_or(PinState::Held, PinState::Refused));
            }
            if refusal.is_none() {
                for held in [&mut self.pins.all, self.pins.tenants.entry(key.tenant).or_default()] {
                    held.host += host;
                    held.device += device;
                    held.slots += 1;
                }
            }
        }
    }

    fn pin_refusal(&self, tenant: TenantId, host: u64, device: u64) -> Option<PinRefusal> {
        let (all, own) = (self.pins.all, self.pins.of(tenant));
        let share = self.share(tenant);
        let over = |held: u64, more: u64, limit: u64| held.saturating_add(more) > limit;
        if let Some(quota) = share.host_bytes.filter(|quota| over(own.host, host, *quota)) {
            return Some(PinRefusal::HostQuota { quota });
        }
        if let Some(quota) = share.device_bytes.filter(|quota| over(own.device, device, *quota)) {
            return Some(PinRefusal::DeviceQuota { quota });
        }
        let part = self.host.capacity / PINNED_PART;
        if over(all.host, host, part) {
            return Some(PinRefusal::HostMemory { part });
        }
        let part = self.memory.bytes / PINNED_PART;
        if over(all.device, device, part) {
            return Some(PinRefusal::DeviceMemory { part });
        }
        let part = self.slots.capacity() / PINNED_PART as usize;
        (all.slots == part).then_some(PinRefusal::Slots { part })
    }

    /// An adapter for which there is no room beside the pins, even alone.
    pub(super) fn displaces_pins_in_host(&self, key: AdapterKey, bytes: u64) -> bool {
        let quota = self.share(key.tenant).host_bytes;
        let own = self.pins.of(key.tenant).host;
        bytes > self.host.capacity.saturating_sub(self.pins.all.host)
            || quota.is_some_and(|quota| bytes > quota.saturating_sub(own))
    }

    /// As above, on the device.
    pub(super) fn displaces_pins_on_device(&self, key: AdapterKey, bytes: u64) -> bool {
        let quota = self.share(key.tenant).device_bytes;
        let own = self.pins.of(key.tenant).device;
        bytes > self.memory.bytes.saturating_sub(self.pins.all.device)
            || quota.is_some_and(|quota| bytes > quota.saturating_sub(own))
    }
}
