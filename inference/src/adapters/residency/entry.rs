//! One adapter's state in each tier.

use super::lease::{AdapterDemand, AdapterLease};
use super::pins::PinState;
use super::report::ResidencyState;
use crate::adapters::{AdapterManifest, CachedFile};
use lorikeet_compute::backend::HostAdapter;
use std::sync::Arc;
use std::time::Instant;

/// The file on the node's disk.
#[derive(Debug)]
pub(super) enum OnDisk {
    Absent,
    /// Its bytes are reserved.
    Fetching {
        file: CachedFile,
        since: Instant,
        /// Since when nobody needs it.
        unwanted_since: Option<Instant>,
        /// Told to break off; it may end well all the same.
        cancelled: bool,
    },
    Present(CachedFile),
    /// Being removed; its bytes are free when that is confirmed.
    Dropping(CachedFile),
}

/// The bytes in host memory.
pub(super) enum InHost {
    Absent,
    /// Its bytes are reserved.
    Reading {
        bytes: u64,
    },
    Present {
        adapter: Arc<HostAdapter>,
        bytes: u64,
        device_bytes: u64,
    },
}

/// The place on the device.
#[derive(Debug)]
pub(super) enum OnDevice {
    Absent,
    Uploading {
        bytes: u64,
        since: Instant,
    },
    Present {
        lease: AdapterLease,
        bytes: u64,
        /// While somebody uses it, it keeps its place until then, and gives way to those who wait for a
        /// first token only from `yields_from` on.
        turn_ends: Instant,
        yields_from: Instant,
        /// Gives way to another: no new leases, evicted when the last one is dropped.
        leaving: bool,
    },
}

#[derive(Debug)]
pub(super) struct Failure {
    pub retry_at: Instant,
    pub reason: String,
}

pub(super) struct Entry {
    /// Known from the first demand or hint on; a file found at the start has none yet.
    pub manifest: Option<Arc<AdapterManifest>>,
    /// Each sequence that needs the adapter holds a clone.
    pub demand: AdapterDemand,
    pub disk: OnDisk,
    pub host: InHost,
    pub device: OnDevice,
    pub failure: Option<Failure>,
    /// Loads that failed since the last that succeeded.
    pub attempts: u32,
    pub last_used: Instant,
    /// Since when it is wanted and not on the device; a turn that was cut short does not count.
    pub waits_since: Instant,
    /// Deleted by its owner: leaves every tier when nobody needs it any more.
    pub forgotten: bool,
    pub pin: Option<PinState>,
    /// What it needs on the device; known from its first read on.
    pub device_size: Option<u64>,
    /// Its pin does not count while an adapter is needed that displaces pins.
    pub is_displaced: bool,
    /// Uploads that the device has refused for want of room, since the last that it took.
    pub refused_uploads: u32,
}

impl Entry {
    pub fn new(now: Instant) -> Self {
        Self {
            manifest: None,
            demand: AdapterDemand::default(),
            disk: OnDisk::Absent,
            host: InHost::Absent,
            device: OnDevice::Absent,
            failure: None,
            attempts: 0,
            last_used: now,
            waits_since: now,
            forgotten: false,
            pin: None,
            device_size: None,
            is_displaced: false,
            refused_uploads: 0,
        }
    }

    pub fn is_demanded(&self) -> bool {
        self.demand.is_shared()
    }

    /// Its pin holds its places in host memory and on the device.
    pub fn is_held(&self) -> bool {
        self.pin == Some(PinState::Held)
    }

    pub fn is_wanted(&self) -> bool {
        self.is_demanded() || (self.is_held() && !self.is_displaced)
    }

    /// In no tier, and nothing under way.
    pub fn is_absent(&self) -> bool {
        matches!(
            (&self.disk, &self.host, &self.device),
            (OnDisk::Absent, InHost::Absent, OnDevice::Absent)
        )
    }

    /// It is wanted on the device, and nothing on the way there has its place yet.
    pub fn waits_for_device(&self) -> bool {
        self.is_wanted() && self.failure.is_none() && matches!(self.device, OnDevice::Absent)
    }

    /// Nothing of it is on the node or on its way.
    pub fn waits_for_fetch(&self) -> bool {
        self.waits_for_device()
            && matches!((&self.disk, &self.host), (OnDisk::Absent, InHost::Absent))
    }

    /// Bytes that dropping the host copy would free.
    pub fn droppable_host_bytes(&self) -> Option<u64> {
        match (&self.host, &self.device) {
            // The copy to the device still reads it.
            (_, OnDevice::Uploading { .. }) => None,
            (InHost::Present { bytes, .. }, _) => Some(*bytes),
            _ => None,
        }
    }

    /// The file that removing it would free.
    pub fn droppable_file(&self) -> Option<CachedFile> {
        match (&self.disk, &self.host) {
            (_, InHost::Reading { .. }) => None,
            (OnDisk::Present(file), _) => Some(*file),
            _ => None,
        }
    }

    pub fn disk_bytes(&self) -> u64 {
        match &self.disk {
            OnDisk::Absent => 0,
            OnDisk::Fetching { file, .. } | OnDisk::Present(file) | OnDisk::Dropping(file) => {
                file.bytes
            }
        }
    }

    pub fn host_bytes(&self) -> u64 {
        match &self.host {
            InHost::Absent => 0,
            InHost::Reading { bytes } | InHost::Present { bytes, .. } => *bytes,
        }
    }

    pub fn device_bytes(&self) -> u64 {
        match &self.device {
            OnDevice::Absent => 0,
            OnDevice::Uploading { bytes, .. } | OnDevice::Present { bytes, .. } => *bytes,
        }
    }

    pub fn state(&self) -> ResidencyState {
        if let OnDevice::Present { lease, .. } = &self.device {
            return ResidencyState::Device { slot: lease.slot() };
        }
        if let Some(Failure { retry_at, reason }) = &self.failure {
            return ResidencyState::Failed { retry_at: *retry_at, reason: reason.clone() };
        }
        match (&self.disk, &self.host) {
            (_, InHost::Present { .. }) => ResidencyState::Host,
            (OnDisk::Present(_), _) => ResidencyState::Disk,
            (OnDisk::Fetching { .. }, _) => ResidencyState::Fetching,
            (OnDisk::Absent | OnDisk::Dropping(_), _) => ResidencyState::Absent,
        }
    }
}
