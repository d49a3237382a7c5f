//! Residency and a world that performs what it decides.

mod border;
mod moves;
mod pins;
mod property;
mod quotas;
mod turns;

use super::entry::{InHost, OnDevice, OnDisk};
use super::*;
use lorikeet_compute::backend::{HostAdapter, HostData};
use lorikeet_contract::adapter::ArtifactHeader;
use lorikeet_contract::{AdapterDigest, ArtifactDigest, TenantId, WeightsDigest};
use uuid::Uuid;

impl Residency {
    /// Budgets hold, tiers agree with entries, and no slot has two owners.
    pub fn assert_invariants(&self) {
        let sum = |bytes: fn(&Entry) -> u64| self.entries.values().map(bytes).sum::<u64>();
        let tiers = [
            (&self.disk, sum(Entry::disk_bytes)),
            (&self.host, sum(Entry::host_bytes)),
            (&self.device, sum(Entry::device_bytes)),
        ];
        for (tier, bytes) in tiers {
            assert_eq!(tier.used, bytes);
            assert!(tier.used <= tier.capacity);
            assert!(self.device.capacity >= self.memory.bytes, "adapters keep their least");
            let distinct: HashSet<_> = tier.members.iter().collect();
            assert_eq!(distinct.len(), tier.members.len());
        }
        for (tenant, share) in &self.shares {
            let within = |used, quota: Option<u64>| quota.is_none_or(|quota| used <= quota);
            assert!(within(self.host.used_by(*tenant), share.host_bytes), "its host quota");
            assert!(within(self.device.used_by(*tenant), share.device_bytes), "its device quota");
        }
        let mut slots = HashSet::new();
        for (key, entry) in &self.entries {
            if let OnDevice::Present { lease, .. } = &entry.device {
                assert_eq!(self.slots.owner(lease.slot()), Some(*key));
                assert!(slots.insert(lease.slot().index), "a slot has two owners");
            }
            if entry.waits_for_device() {
                assert_eq!(self.wanted.iter().filter(|k| *k == key).count(), 1, "{key:?} waits");
            }
        }
        let count = |of: fn(&Entry) -> bool| self.entries.values().filter(|e| of(e)).count();
        assert_eq!(self.fetching.len(), count(|e| matches!(e.disk, OnDisk::Fetching { .. })));
        assert_eq!(self.reads, count(|e| matches!(e.host, InHost::Reading { .. })));
        assert_eq!(self.uploads, count(|e| matches!(e.device, OnDevice::Uploading { .. })));
        assert_eq!(
            self.device.members.len() + self.slots.free(),
            self.slots.capacity(),
            "every slot is free or belongs to a member"
        );
    }

    /// Bytes of the device that are the adapters' now.
    pub fn device_bytes(&self) -> u64 {
        self.device.capacity
    }

    /// True when no sequence needs an adapter and no step reads one.
    pub fn is_unused(&self) -> bool {
        self.entries.values().all(|entry| {
            let leased =
                matches!(&entry.device, OnDevice::Present { lease, .. } if lease.is_shared());
            !leased && !entry.is_demanded()
        })
    }
}

fn tenant(id: u8) -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(id.into()))
}

fn manifest(id: u8, bytes: u64) -> Arc<AdapterManifest> {
    owned(1, id, bytes)
}

fn owned(owner: u8, id: u8, bytes: u64) -> Arc<AdapterManifest> {
    let tenant = tenant(owner);
    Arc::new(AdapterManifest {
        key: AdapterKey { tenant, digest: AdapterDigest([id; 32]) },
        object_key: format!("adapter-{id}"),
        bytes,
        artifact_digest: ArtifactDigest([id; 32]),
        max_rank: 8,
    })
}

fn host_adapter(manifest: &AdapterManifest) -> HostAdapter {
    let header = ArtifactHeader {
        layout_version: 1,
        adapter_digest: manifest.key.digest,
        base_weights_digest: WeightsDigest([0; 32]),
        modules: Vec::new(),
    };
    let file = vec![0u8; manifest.bytes as usize];
    HostAdapter { key: manifest.key, header, data: HostData::File(Box::new(file)) }
}

fn config(disk: u64, host: u64) -> ResidencyConfig {
    ResidencyConfig { disk_bytes: disk, host_bytes: host, ..ResidencyConfig::default() }
}

/// How an action ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Well,
    Badly,
    /// Of an upload: the device has no room in one piece.
    NoRoom,
}

/// Performs actions, each at once and well unless told otherwise.
struct World {
    residency: Residency,
    now: Instant,
    pending: VecDeque<AdapterAction>,
    /// Fetches told to break off; the next time they are performed they do.
    cancelled: Vec<AdapterKey>,
    /// Blocks that are not needed.
    borrowable: u32,
    log: Vec<String>,
}

impl World {
    fn new(disk: u64, host: u64, device: u64) -> Self {
        let memory = DeviceMemory { bytes: device, block_bytes: 0 };
        let residency = Residency::new(config(disk, host), memory, 8);
        Self {
            residency,
            now: Instant::now(),
            pending: VecDeque::new(),
            cancelled: Vec::new(),
            borrowable: 0,
            log: Vec::new(),
        }
    }

    fn demand(&mut self, manifest: &Arc<AdapterManifest>) -> AdapterDemand {
        self.demand_with(manifest, TenantShare::default())
    }

    fn demand_with(
        &mut self,
        manifest: &Arc<AdapterManifest>,
        share: TenantShare,
    ) -> AdapterDemand {
        self.residency.demand(manifest, share, self.now).unwrap()
    }

    fn pin(&mut self, manifests: &[&Arc<AdapterManifest>]) {
        self.pin_with(manifests, TenantShare::default());
    }

    fn pin_with(&mut self, manifests: &[&Arc<AdapterManifest>], share: TenantShare) {
        let pin = |manifest: &&Arc<AdapterManifest>| Pin { manifest: Arc::clone(manifest), share };
        self.residency.pin(manifests.iter().map(pin).collect(), self.now);
    }

    fn plan(&mut self) {
        let mut actions = Vec::new();
        self.residency.plan(self.now, &Claims::default(), self.borrowable, &mut actions);
        self.take(actions);
        self.residency.assert_invariants();
        self.run();
    }

    /// Moves the border at once; the rest is pending.
    fn take(&mut self, actions: Vec<AdapterAction>) {
        for action in actions {
            match action {
                AdapterAction::Borrow { blocks } => {
                    self.log.push(format!("borrow {blocks}"));
                    self.borrowable -= blocks;
                }
                AdapterAction::Return { blocks } => {
                    self.log.push(format!("return {blocks}"));
                    self.residency.returned(blocks);
                    self.borrowable += blocks;
                }
                action => self.pending.push_back(action),
            }
        }
    }

    /// A step of everything that is in use on the device.
    fn run(&mut self) {
        let in_use = self.residency.entries.iter().filter(|(_, entry)| entry.is_demanded());
        let keys: Vec<AdapterKey> = in_use.map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(lease) = self.residency.lease(&key) {
                self.residency.runs(lease.slot(), self.now);
            }
        }
    }

    /// Performs the action at an index.
    fn perform(&mut self, at: usize, end: End) {
        let Some(action) = self.pending.remove(at) else { return };
        let now = self.now;
        let ok = end == End::Well;
        let failed = || "injected".to_owned();
        match action {
            AdapterAction::Load(LoadAction::Fetch(m)) => {
                let is_cancelled = self.cancelled.contains(&m.key);
                self.cancelled.retain(|key| *key != m.key);
                let result = match end {
                    _ if is_cancelled => Err(FetchFailure::Cancelled),
                    End::Well => Ok(()),
                    End::Badly | End::NoRoom => Err(FetchFailure::Failed(failed())),
                };
                self.log.push(format!("fetch {}", m.key.digest.0[0]));
                self.residency.fetched(m.key, result, now);
            }
            AdapterAction::Load(LoadAction::Read(m)) => {
                self.log.push(format!("read {}", m.key.digest.0[0]));
                let failure = ReadFailure { reason: failed(), file_lost: true };
                let adapter = (host_adapter(&m), m.bytes);
                self.residency.read(m.key, ok.then_some(adapter).ok_or(failure), now);
            }
            AdapterAction::Load(LoadAction::DropFile(file)) => {
                self.log.push(format!("drop {}", file.key.digest.0[0]));
                self.residency.dropped(file.key);
            }
            AdapterAction::CancelFetch(key) => {
                self.log.push(format!("cancel {}", key.digest.0[0]));
                self.cancelled.push(key);
            }
            AdapterAction::Upload { slot, adapter } => {
                self.log.push(format!("upload {}", adapter.key.digest.0[0]));
                let result = match end {
                    End::Well => Ok(()),
                    End::Badly => Err(UploadFailure::Failed(failed())),
                    End::NoRoom => Err(UploadFailure::NoRoom),
                };
                self.residency.uploaded(slot, result, now);
            }
            AdapterAction::Evict(_) => self.log.push("evict".to_owned()),
            AdapterAction::Borrow { .. } | AdapterAction::Return { .. } => {
                unreachable!("made at once")
            }
        }
        self.residency.assert_invariants();
    }

    /// Plans and performs until nothing is left to do.
    fn settle(&mut self) {
        loop {
            self.plan();
            if self.pending.is_empty() {
                return;
            }
            while !self.pending.is_empty() {
                self.perform(0, End::Well);
            }
        }
    }

    fn state(&self, manifest: &AdapterManifest) -> ResidencyState {
        let report = self.residency.report();
        let adapter = report.adapters.iter().find(|a| a.key == manifest.key);
        adapter.map_or(ResidencyState::Absent, |a| a.state.clone())
    }

    fn is_on_device(&self, manifest: &AdapterManifest) -> bool {
        matches!(self.state(manifest), ResidencyState::Device { .. })
    }
}
