//! How actions ended.

use super::entry::{Entry, Failure, InHost, OnDevice, OnDisk};
use super::lease::AdapterLease;
use super::{Residency, ResidencyConfig};
use crate::adapters::AdapterKey;
use lorikeet_compute::backend::{AdapterSlot, HostAdapter};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A slot is empty during a swap, so this bounds the device time that rotation costs to a fifth, and
/// that in places for new requests alone.
const TURN_PER_SWAP: u32 = 4;

/// The part of the quantum that each turn lasts at least.
const SHORTEST_TURN: u32 = 32;

/// Why an adapter could not be read from disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFailure {
    pub reason: String,
    /// The file was missing or damaged and is gone now: it can be fetched again.
    pub file_lost: bool,
}

/// Why an adapter did not arrive on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchFailure {
    /// By a [`AdapterAction::CancelFetch`](super::AdapterAction).
    Cancelled,
    Failed(String),
}

/// Why an adapter was not placed on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadFailure {
    /// The bytes may be free, but the device does not have them in one piece. Not the adapter's fault.
    NoRoom,
    Failed(String),
}

impl Residency {
    /// A `Fetch` has ended.
    pub fn fetched(&mut self, key: AdapterKey, result: Result<(), FetchFailure>, now: Instant) {
        self.fetching.retain(|fetching| *fetching != key);
        self.changes += 1;
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let OnDisk::Fetching { file, cancelled, .. } = entry.disk else { return };
        let failure = match result {
            Ok(()) => {
                entry.disk = OnDisk::Present(file);
                return;
            }
            Err(failure) => failure,
        };
        entry.disk = OnDisk::Absent;
        self.disk.release(key, file.bytes);
        match failure {
            // Whoever still wanted it has been told, or wants it since and has it fetched again.
            FetchFailure::Cancelled => {}
            FetchFailure::Failed(_) if cancelled => {}
            FetchFailure::Failed(reason) => self.fail(key, reason, now),
        }
    }

    /// A `Read` has ended. `device_bytes`: what the backend will need for the adapter.
    pub fn read(
        &mut self,
        key: AdapterKey,
        result: Result<(HostAdapter, u64), ReadFailure>,
        now: Instant,
    ) {
        self.reads -= 1;
        self.changes += 1;
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let InHost::Reading { bytes } = entry.host else { return };
        let failure = match result {
            Ok((adapter, device_bytes)) => {
                entry.host = InHost::Present { adapter: Arc::new(adapter), bytes, device_bytes };
                let is_news = entry.device_size.replace(device_bytes) != Some(device_bytes);
                self.pins.stale |= is_news && entry.pin.is_some();
                return;
            }
            Err(failure) => failure,
        };
        entry.host = InHost::Absent;
        self.host.release(key, bytes);
        if failure.file_lost
            && let OnDisk::Present(file) = entry.disk
        {
            entry.disk = OnDisk::Absent;
            self.disk.release(key, file.bytes);
            // The first damage is repaired unseen: the adapter still waits and is fetched again.
            if entry.attempts == 0 {
                entry.attempts = 1;
                return;
            }
        }
        self.fail(key, failure.reason, now);
    }

    /// A `DropFile` has ended.
    pub fn dropped(&mut self, key: AdapterKey) {
        self.changes += 1;
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let OnDisk::Dropping(file) = entry.disk else { return };
        entry.disk = OnDisk::Absent;
        self.disk.release(key, file.bytes);
    }

    /// An `Upload` has ended. After a failed one the slot is free.
    ///
    /// One that was refused for want of room is tried again when no other is under way, because only
    /// then a device can close its gaps, and at the cost of more adapters each time. It is the
    /// adapter's failure when the device has no room with nothing else on it but pins that stay, and
    /// nothing on its way there.
    pub fn uploaded(&mut self, slot: AdapterSlot, result: Result<(), UploadFailure>, now: Instant) {
        self.changes += 1;
        self.uploads -= 1;
        let Some(key) = self.slots.owner(slot) else { return };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let OnDevice::Uploading { bytes, since } = entry.device else { return };
        let failure = match result {
            Ok(()) => {
                entry.attempts = 0;
                entry.refused_uploads = 0;
                entry.last_used = now;
                self.slots.runs(slot, self.plans);
                entry.device = OnDevice::Present {
                    lease: AdapterLease::new(slot, now),
                    bytes,
                    turn_ends: now + self.config.quantum,
                    yields_from: now + shortest_turn(&self.config, now - since),
                    leaving: false,
                };
                return;
            }
            Err(failure) => failure,
        };
        entry.device = OnDevice::Absent;
        entry.refused_uploads += 1;
        self.device.release(key, bytes);
        self.slots.release(slot);
        let waits = entry.waits_for_device() && !self.wanted.contains(&key);
        let may_change = self.uploads > 0 || self.device.used > self.staying_for(key, bytes);
        match failure {
            UploadFailure::NoRoom if may_change => {
                if waits {
                    self.wanted.push_front(key);
                }
            }
            UploadFailure::NoRoom => {
                let room = self.device.capacity;
                let reason = format!("its {bytes} bytes have no room among the device's {room}");
                self.fail(key, reason, now);
            }
            UploadFailure::Failed(reason) => self.fail(key, reason, now),
        }
    }

    pub(super) fn fail(&mut self, key: AdapterKey, reason: String, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.attempts = entry.attempts.saturating_add(1);
        entry.refused_uploads = 0;
        let retry_at = now + backoff(&self.config, entry);
        entry.failure = Some(Failure { retry_at, reason });
        self.failures.push(key);
    }
}

/// How long an adapter stays in use that took so long to bring to the device.
fn shortest_turn(config: &ResidencyConfig, swap: Duration) -> Duration {
    let turn = swap.saturating_mul(TURN_PER_SWAP);
    turn.clamp(config.quantum / SHORTEST_TURN, config.quantum)
}

fn backoff(config: &ResidencyConfig, entry: &Entry) -> Duration {
    let doublings = (entry.attempts - 1).min(16);
    config.retry_min.saturating_mul(1 << doublings).min(config.retry_max)
}
