//! Where each adapter's bytes are, and what to load, move or drop next. A function of state and
//! `now`, std and contract only: others perform the [`AdapterAction`]s and report how they ended.
//!
//! ```text
//!  Absent ──Fetch──> Fetching ──fetched──> Disk ──Read──> (reading) ──read──> Host ──Upload──> Device
//!     ^                  │                                    │                         │        │
//!     │                  └──────────────── Failed <───────────┴─────────────────────────┘        │
//!     └── DropFile, host copies dropped when their room is needed ──────────── Evict ────────────┘
//! ```
//! The tiers are independent: an adapter on the device may have lost its file and its host copy to
//! others that needed the room. Adapters that sequences need and that are not on the device wait
//! in one queue: first those of the tenant that has been served least; of one tenant those with a
//! sequence that has no token yet, and then those whose sequences have waited longest, all together.
//! Whoever is ahead may displace what nobody needs and those behind; of those in use on the device,
//! whoever's turn has ended and whose tenant has not been served less, or who does not run at all. So
//! each gets its turn, and a swap is paid for by use. Turns are long, but for a first token the adapter
//! that came last gives way early: answers pause seldom, and those of one adapter run together. An
//! adapter that is wanted only by sequences that could not run displaces nobody in use. A tenant that
//! has used up its quota waits for its own adapters to let go, and nobody waits for it.
//! [Pins](Pin) keep their places.

mod border;
mod claim;
mod device;
mod disk;
mod entry;
mod events;
mod host;
mod lease;
mod pins;
mod plan;
mod report;
mod slots;
mod tier;

use crate::adapters::{AdapterKey, AdapterManifest, CachedFile};
use crate::share::TenantShare;
use entry::{Entry, OnDevice, OnDisk};
use lorikeet_compute::backend::{AdapterSlot, HostAdapter};
use lorikeet_contract::TenantId;
use pins::Pins;
use slots::Slots;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tier::Tier;

pub use border::{BlocksLacking, DeviceMemory};
pub use claim::{Claim, Claims};
pub use events::{FetchFailure, ReadFailure, UploadFailure};
pub use lease::{AdapterDemand, AdapterLease};
pub use pins::{Pin, PinRefusal, PinState};
pub use report::{AdapterReport, ResidencyReport, ResidencyState, TierUse};

/// Budgets and pace. The device's budget is the backend's ([`DeviceMemory`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResidencyConfig {
    pub host_bytes: u64,
    pub disk_bytes: u64,
    /// An adapter in use keeps its place for so long while others wait for it, so that all get their
    /// turn. Where one of them has a request without a first token, whoever has been there for four
    /// times as long as bringing it there took gives way, at the earliest after a 32nd of this.
    pub quantum: Duration,
    /// Downloads, and reads from disk, under way at once.
    pub max_fetches: usize,
    pub max_reads: usize,
    /// Copies to the device under way at once.
    pub max_uploads: usize,
    /// A failed load is tried again after this, doubled with each failure up to `retry_max`.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// A download that takes longer fails those who wait for it.
    pub download_deadline: Duration,
    /// A download that nobody wants any more is broken off after this.
    pub abandon_after: Duration,
}

impl Default for ResidencyConfig {
    fn default() -> Self {
        Self {
            host_bytes: 1 << 30,
            disk_bytes: 16 << 30,
            quantum: Duration::from_secs(2),
            max_fetches: 4,
            max_reads: 2,
            max_uploads: 4,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            download_deadline: Duration::from_secs(120),
            abandon_after: Duration::from_secs(5),
        }
    }
}

/// What is to be done, in this order. `Load` and `Upload` end in exactly one report back.
pub enum AdapterAction {
    /// To be done beside the running steps.
    Load(LoadAction),
    /// Nobody waits for the adapter's `Fetch` any more: it may end without its bytes, and soon.
    CancelFetch(AdapterKey),
    /// Host memory to the device; ends in [`Residency::uploaded`].
    Upload { slot: AdapterSlot, adapter: Arc<HostAdapter> },
    /// No submitted step reads the slot.
    Evict(AdapterSlot),
    /// KV blocks that nobody needs become room for adapters.
    Borrow { blocks: u32 },
    /// Room that adapters do not use becomes KV blocks again; ends in [`Residency::returned`], or in
    /// nothing where the device cannot do it now.
    Return { blocks: u32 },
}

/// What takes I/O. Never more than `max_fetches + max_reads` and the files of the disk cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadAction {
    /// Object store to disk; ends in [`Residency::fetched`].
    Fetch(Arc<AdapterManifest>),
    /// Disk to host memory; ends in [`Residency::read`].
    Read(Arc<AdapterManifest>),
    /// Ends in [`Residency::dropped`].
    DropFile(CachedFile),
}

/// The adapters that a node has, wants, or has failed to load.
pub struct Residency {
    config: ResidencyConfig,
    entries: HashMap<AdapterKey, Entry>,
    disk: Tier,
    host: Tier,
    /// Its capacity changes with the border to the KV blocks.
    device: Tier,
    memory: DeviceMemory,
    /// Blocks that the plan under way may borrow.
    borrowable: u32,
    slots: Slots,
    /// Needed and not on the device, longest waiting first.
    wanted: VecDeque<AdapterKey>,
    forgotten: Vec<AdapterKey>,
    pins: Pins,
    /// What tenants were last said to be entitled to.
    shares: HashMap<TenantId, TenantShare>,
    /// Their downloads are under way.
    fetching: Vec<AdapterKey>,
    reads: usize,
    uploads: usize,
    /// Failed since [`Residency::take_failures`].
    failures: Vec<AdapterKey>,
    /// Counts plans: an adapter in use that has not run for a few has no use for its place.
    plans: u64,
    changes: u64,
    rotations: u64,
    next_sweep: Option<Instant>,
}

impl Residency {
    pub fn new(config: ResidencyConfig, memory: DeviceMemory, max_slots: u32) -> Self {
        Self {
            config,
            entries: HashMap::new(),
            disk: Tier::new(config.disk_bytes),
            host: Tier::new(config.host_bytes),
            device: Tier::new(memory.bytes),
            memory,
            borrowable: 0,
            slots: Slots::new(max_slots),
            wanted: VecDeque::new(),
            forgotten: Vec::new(),
            pins: Pins::default(),
            shares: HashMap::new(),
            fetching: Vec::new(),
            reads: 0,
            uploads: 0,
            failures: Vec::new(),
            plans: 0,
            changes: 0,
            rotations: 0,
            next_sweep: None,
        }
    }

    /// Takes over a file found at the start. False when it does not fit: it is to be removed.
    #[must_use]
    pub fn restore(&mut self, file: CachedFile, now: Instant) -> bool {
        if file.bytes > self.disk.free() || self.entries.contains_key(&file.key) {
            return false;
        }
        let entry = Entry { disk: OnDisk::Present(file), ..Entry::new(now) };
        self.entries.insert(file.key, entry);
        self.disk.reserve(file.key, file.bytes);
        self.changes += 1;
        true
    }

    /// Somebody needs the adapter until they drop what this returns; the load starts with the next
    /// plan. `share` is what its tenant is entitled to now. An error is the reason why it cannot be
    /// had: of a failed load that is not to be tried again yet, or a size that no room would be
    /// enough for.
    pub fn demand(
        &mut self,
        manifest: &Arc<AdapterManifest>,
        share: TenantShare,
        now: Instant,
    ) -> Result<AdapterDemand, String> {
        let (key, bytes) = (manifest.key, manifest.bytes);
        if self.shares.insert(key.tenant, share) != Some(share) {
            self.pins.stale = true;
        }
        if bytes > self.disk.capacity {
            let room = self.disk.capacity;
            return Err(format!("it needs {bytes} bytes on disk, this node has {room}"));
        }
        if let Some(reason) = self.too_large_for_host(key, bytes) {
            return Err(reason);
        }
        let nobody_waits = self.wanted.is_empty();
        let quantum = self.config.quantum;
        let waits = self.wanted.contains(&key);
        let entry = self.know(manifest, now);
        if let Some(failure) = &entry.failure {
            if now < failure.retry_at {
                return Err(failure.reason.clone());
            }
            entry.failure = None;
        }
        let is_first = !entry.is_demanded();
        let demand = entry.demand.clone();
        entry.last_used = now;
        match &mut entry.device {
            OnDevice::Absent if !waits => {
                entry.waits_since = now;
                self.wanted.push_back(key);
            }
            // Its turn starts now, unless it would prolong one at the cost of those who wait.
            OnDevice::Present { turn_ends, .. } if is_first && nobody_waits => {
                *turn_ends = now + quantum;
            }
            _ => {}
        }
        Ok(demand)
    }

    /// The adapter was deleted: when nobody needs it any more, its bytes leave every tier.
    pub fn forget(&mut self, key: AdapterKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if !entry.forgotten {
            entry.forgotten = true;
            self.forgotten.push(key);
        }
        entry.pin = None;
        self.pins.drop_pin(key);
    }

    /// Forgets what is not among `kept`: adapters deleted while the node was down, whose files it
    /// still had.
    pub fn retain(&mut self, kept: &HashSet<AdapterKey>) {
        let gone: Vec<_> = self.entries.keys().filter(|key| !kept.contains(key)).copied().collect();
        for key in gone {
            self.forget(key);
        }
    }

    /// The adapter's slot, to be read by one step; None while it is not on the device.
    pub fn lease(&self, key: &AdapterKey) -> Option<AdapterLease> {
        let OnDevice::Present { lease, leaving: false, .. } = &self.entries.get(key)?.device else {
            return None;
        };
        Some(lease.clone())
    }

    /// The step planned now reads the slot. False when that is known already.
    pub fn runs(&mut self, slot: AdapterSlot, now: Instant) -> bool {
        if !self.slots.runs(slot, self.plans) {
            return false;
        }
        let entry = self.slots.owner(slot).and_then(|key| self.entries.get_mut(&key));
        entry.into_iter().for_each(|entry| entry.last_used = now);
        true
    }

    /// Adapters wait for the device.
    pub fn is_contended(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Those that somebody needs; pins that nobody needs are not among them.
    pub fn awaited(&self) -> impl Iterator<Item = AdapterKey> {
        let is_demanded = |key: &AdapterKey| self.entries.get(key).is_some_and(Entry::is_demanded);
        self.wanted.iter().copied().filter(is_demanded)
    }

    /// Adapters whose loads failed since the last call; those who need them are to be told.
    pub fn take_failures(&mut self, into: &mut Vec<AdapterKey>) {
        into.append(&mut self.failures);
    }

    /// Why the adapter's last load failed, if it did.
    pub fn failure(&self, key: &AdapterKey) -> Option<&str> {
        self.entries.get(key)?.failure.as_ref().map(|failure| failure.reason.as_str())
    }

    /// Copies to the device under way.
    pub fn uploads(&self) -> usize {
        self.uploads
    }

    /// Grows with every change that [`Residency::report`] would show.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Adapters that left the device while they were needed, since the start.
    pub fn rotations(&self) -> u64 {
        self.rotations
    }

    /// Every adapter in some tier, failed, or pinned.
    pub fn report(&self) -> ResidencyReport {
        let tier = |t: &Tier| TierUse { used: t.used, capacity: t.capacity };
        let mut adapters: Vec<AdapterReport> = self
            .entries
            .iter()
            .map(|(key, entry)| AdapterReport {
                key: *key,
                state: entry.state(),
                pin: entry.pin,
                disk_bytes: entry.disk_bytes(),
                host_bytes: entry.host_bytes(),
                device_bytes: entry.device_bytes(),
            })
            .collect();
        adapters.sort_unstable_by_key(|adapter| adapter.key);
        ResidencyReport {
            disk: tier(&self.disk),
            host: tier(&self.host),
            device: tier(&self.device),
            adapters,
        }
    }

    fn share(&self, tenant: TenantId) -> TenantShare {
        self.shares.get(&tenant).copied().unwrap_or_default()
    }

    /// The adapter's entry, with the manifest to load it by.
    fn know(&mut self, manifest: &Arc<AdapterManifest>, now: Instant) -> &mut Entry {
        let entry = self.entries.entry(manifest.key).or_insert_with(|| Entry::new(now));
        // What is loaded or under way was named by the manifest that started it. Equal content
        // may have been packed anew since; that counts from the next load on.
        if entry.manifest.is_none() || entry.is_absent() {
            entry.manifest = Some(Arc::clone(manifest));
        }
        entry
    }
}

#[cfg(test)]
mod tests;
