//! How actions ended.

use super::entry::{Entry, Failure, InHost, OnDevice, OnDisk};
use super::lease::AdapterLease;
use super::{Residency, ResidencyConfig};
use crate::adapters::AdapterKey;
use crate::backend::{AdapterSlot, HostAdapter};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why an adapter could not be read from disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFailure {
    pub reason: String,
    /// The file was missing or damaged and is gone now: it can be fetched again.
    pub file_lost: bool,
}

impl Residency {
    /// A `Fetch` has ended.
    pub fn fetched(&mut self, key: AdapterKey, result: Result<(), String>, now: Instant) {
        self.fetches -= 1;
        self.changes += 1;
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let OnDisk::Fetching(file) = entry.disk else { return };
        match result {
            Ok(()) => entry.disk = OnDisk::Present(file),
            Err(reason) => {
                entry.disk = OnDisk::Absent;
                self.disk.release(key, file.bytes);
                self.fail(key, reason, now);
            }
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
            Ok((adapter, device_bytes)) if device_bytes <= self.device.capacity => {
                entry.host = InHost::Present { adapter: Arc::new(adapter), bytes, device_bytes };
                return;
            }
            Ok((_, needed)) => {
                let room = self.device.capacity;
                let reason = format!("it needs {needed} bytes on the device, this node has {room}");
                ReadFailure { reason, file_lost: false }
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
    pub fn uploaded(&mut self, slot: AdapterSlot, result: Result<(), String>, now: Instant) {
        self.changes += 1;
        self.uploads -= 1;
        let Some(key) = self.slots.owner(slot) else { return };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let OnDevice::Uploading { bytes, .. } = entry.device else { return };
        match result {
            Ok(()) => {
                entry.attempts = 0;
                entry.last_used = now;
                entry.device = OnDevice::Present {
                    lease: AdapterLease::new(slot, now),
                    bytes,
                    quantum_ends: now + self.config.quantum,
                    leaving: false,
                };
            }
            Err(reason) => {
                entry.device = OnDevice::Absent;
                self.device.release(key, bytes);
                self.slots.release(slot);
                self.fail(key, reason, now);
            }
        }
    }

    fn fail(&mut self, key: AdapterKey, reason: String, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.attempts = entry.attempts.saturating_add(1);
        let retry_at = now + backoff(&self.config, entry);
        entry.failure = Some(Failure { retry_at, reason });
        self.failures.push(key);
    }
}

fn backoff(config: &ResidencyConfig, entry: &Entry) -> Duration {
    let doublings = (entry.attempts - 1).min(16);
    config.retry_min.saturating_mul(1 << doublings).min(config.retry_max)
}
