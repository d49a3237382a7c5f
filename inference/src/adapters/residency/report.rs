//! Residency as others see it.

use super::PinState;
use crate::adapters::AdapterKey;
use lorikeet_compute::backend::AdapterSlot;
use std::time::Instant;

/// The highest tier that holds an adapter whole, or what is being done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResidencyState {
    Absent,
    Fetching,
    Disk,
    Host,
    Device {
        slot: AdapterSlot,
    },
    /// Requests fail with the reason until `retry_at`; the next one after it starts a new load.
    Failed {
        retry_at: Instant,
        reason: String,
    },
}

/// Bytes of one tier, reservations of loads under way included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierUse {
    pub used: u64,
    pub capacity: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterReport {
    pub key: AdapterKey,
    pub state: ResidencyState,
    /// What has become of its pin, if it is pinned.
    pub pin: Option<PinState>,
    /// Bytes it occupies in each tier; an adapter may be in several.
    pub disk_bytes: u64,
    pub host_bytes: u64,
    pub device_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResidencyReport {
    pub disk: TierUse,
    pub host: TierUse,
    pub device: TierUse,
    /// In the order of their keys.
    pub adapters: Vec<AdapterReport>,
}
