use super::entry::{InHost, OnDevice, OnDisk};
use super::*;
use crate::backend::HostAdapter;
use lorikeet_contract::adapter::ArtifactHeader;
use lorikeet_contract::{AdapterDigest, ArtifactDigest, TenantId, WeightsDigest};
use proptest::prelude::*;
use std::collections::VecDeque;
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
            let distinct: std::collections::HashSet<_> = tier.members.iter().collect();
            assert_eq!(distinct.len(), tier.members.len());
        }
        let mut slots = std::collections::HashSet::new();
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
        assert_eq!(self.fetches, count(|e| matches!(e.disk, OnDisk::Fetching(_))));
        assert_eq!(self.reads, count(|e| matches!(e.host, InHost::Reading { .. })));
        assert_eq!(self.uploads, count(|e| matches!(e.device, OnDevice::Uploading { .. })));
        assert_eq!(
            self.device.members.len() + self.slots.free(),
            self.slots.capacity(),
            "every slot is free or belongs to a member"
        );
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

fn manifest(id: u8, bytes: u64) -> Arc<AdapterManifest> {
    let tenant = TenantId::from_uuid(Uuid::from_u128(1));
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
    HostAdapter { key: manifest.key, header, data: Box::new(vec![0u8; manifest.bytes as usize]) }
}

fn config(disk: u64, host: u64) -> ResidencyConfig {
    ResidencyConfig { disk_bytes: disk, host_bytes: host, ..ResidencyConfig::default() }
}

/// Performs actions, each at once and well unless told otherwise.
struct World {
    residency: Residency,
    now: Instant,
    pending: VecDeque<AdapterAction>,
    log: Vec<String>,
}

impl World {
    fn new(disk: u64, host: u64, device: u64) -> Self {
        let residency = Residency::new(config(disk, host), device, 8);
        let (pending, log) = (VecDeque::new(), Vec::new());
        Self { residency, now: Instant::now(), pending, log }
    }

    fn demand(&mut self, manifest: &Arc<AdapterManifest>) -> AdapterDemand {
        self.residency.demand(manifest, self.now).unwrap()
    }

    fn plan(&mut self) {
        let mut actions = Vec::new();
        self.residency.plan(self.now, &mut actions);
        self.pending.extend(actions);
        self.residency.assert_invariants();
    }

    /// Performs the action at an index; `ok` false makes it fail.
    fn perform(&mut self, at: usize, ok: bool) {
        let Some(action) = self.pending.remove(at) else { return };
        let now = self.now;
        let failed = || "injected".to_owned();
        match action {
            AdapterAction::Load(LoadAction::Fetch(m)) => {
                self.log.push(format!("fetch {}", m.key.digest.0[0]));
                self.residency.fetched(m.key, ok.then_some(()).ok_or_else(failed), now);
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
            AdapterAction::Upload { slot, adapter } => {
                self.log.push(format!("upload {}", adapter.key.digest.0[0]));
                self.residency.uploaded(slot, ok.then_some(()).ok_or_else(failed), now);
            }
            AdapterAction::Evict(_) => self.log.push("evict".to_owned()),
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
                self.perform(0, true);
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

#[test]
fn a_demanded_adapter_climbs_tier_by_tier_onto_the_device() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    let _demand = world.demand(&a);
    world.settle();
    assert_eq!(world.log, ["fetch 1", "read 1", "upload 1"]);
    assert!(world.is_on_device(&a));
}

#[test]
fn many_demands_start_one_load() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    let _demands: Vec<_> = (0..5).map(|_| world.demand(&a)).collect();
    world.plan();
    let _more = world.demand(&a);
    world.settle();
    assert_eq!(world.log, ["fetch 1", "read 1", "upload 1"]);
}

#[test]
fn a_file_found_at_the_start_is_not_fetched_again() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    assert!(world.residency.restore(CachedFile::of(&a), world.now));
    let _demand = world.demand(&a);
    world.settle();
    assert_eq!(world.log, ["read 1", "upload 1"]);
}

#[test]
fn a_file_packed_differently_is_replaced() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    let old = CachedFile { artifact_digest: ArtifactDigest([9; 32]), ..CachedFile::of(&a) };
    assert!(world.residency.restore(old, world.now));
    let _demand = world.demand(&a);
    world.settle();
    assert_eq!(world.log, ["drop 1", "fetch 1", "read 1", "upload 1"]);
}

#[test]
fn a_slot_is_kept_while_a_step_reads_it_and_its_next_owner_has_another_generation() {
    let mut world = World::new(200, 200, 40);
    let (a, b) = (manifest(1, 40), manifest(2, 40));
    let demand = world.demand(&a);
    world.settle();
    let lease = world.residency.lease(&a.key, world.now).unwrap();
    drop(demand);
    let _other = world.demand(&b);
    world.settle();
    assert!(!world.is_on_device(&b));
    assert!(world.residency.lease(&a.key, world.now).is_none(), "it is on its way out");
    let slot = lease.slot();
    drop(lease);
    world.settle();
    let next = world.residency.lease(&b.key, world.now).unwrap().slot();
    assert_eq!(next.index, slot.index);
    assert_ne!(next.generation, slot.generation);
}

#[test]
fn an_adapter_in_use_gives_way_when_its_quantum_has_ended_and_comes_back() {
    let mut world = World::new(200, 200, 40);
    let (a, b) = (manifest(1, 40), manifest(2, 40));
    let _a = world.demand(&a);
    world.settle();
    let _b = world.demand(&b);
    world.settle();
    assert!(world.is_on_device(&a), "its quantum has not ended");
    for (here, there) in [(&b, &a), (&a, &b), (&b, &a)] {
        world.now += world.residency.config.quantum;
        world.settle();
        assert!(world.is_on_device(here));
        assert_eq!(world.state(there), ResidencyState::Host);
    }
}

#[test]
fn what_nobody_needs_leaves_first_and_least_recently_used() {
    let mut world = World::new(400, 400, 80);
    let [a, b, c] = [1, 2, 3].map(|id| manifest(id, 40));
    for m in [&a, &b] {
        let demand = world.demand(m);
        world.settle();
        drop(demand);
        world.now += Duration::from_millis(1);
    }
    let _ = world.residency.lease(&a.key, world.now);
    let _c = world.demand(&c);
    world.settle();
    assert!(world.is_on_device(&a) && world.is_on_device(&c));
    assert_eq!(world.state(&b), ResidencyState::Host);
}

#[test]
fn room_in_host_memory_and_on_disk_is_made_at_the_cost_of_the_least_recently_used() {
    let mut world = World::new(80, 40, 40);
    let [a, b, c] = [1, 2, 3].map(|id| manifest(id, 40));
    for m in [&a, &b, &c] {
        let demand = world.demand(m);
        world.settle();
        assert!(world.is_on_device(m));
        drop(demand);
        world.now += Duration::from_millis(1);
    }
    assert_eq!(world.state(&a), ResidencyState::Absent);
    assert_eq!(world.state(&b), ResidencyState::Disk);
}

#[test]
fn a_failed_load_is_refused_until_its_time_and_later_ones_wait_longer() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    let mut waits = Vec::new();
    for _ in 0..3 {
        let demand = world.demand(&a);
        world.plan();
        world.perform(0, false);
        let mut failed = Vec::new();
        world.residency.take_failures(&mut failed);
        assert_eq!(failed, [a.key]);
        drop(demand);
        let refusal = world.residency.demand(&a, world.now).unwrap_err();
        assert_eq!(refusal, "injected");
        let ResidencyState::Failed { retry_at, .. } = world.state(&a) else { panic!() };
        waits.push(retry_at - world.now);
        world.now = retry_at;
    }
    assert_eq!(waits, [1, 2, 4].map(Duration::from_secs));
    let _demand = world.demand(&a);
    world.settle();
    assert!(world.is_on_device(&a));
}

#[test]
fn a_damaged_file_is_fetched_again_before_anybody_is_told() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    assert!(world.residency.restore(CachedFile::of(&a), world.now));
    let _demand = world.demand(&a);
    world.plan();
    world.perform(0, false);
    world.settle();
    assert_eq!(world.log, ["read 1", "fetch 1", "read 1", "upload 1"]);
    assert!(world.is_on_device(&a));
}

#[test]
fn an_adapter_that_no_room_is_enough_for_is_refused_with_the_numbers() {
    let mut world = World::new(100, 50, 100);
    let reason = world.residency.demand(&manifest(1, 60), world.now).unwrap_err();
    assert_eq!(reason, "it needs 60 bytes in host memory, this node has 50");
    let mut world = World::new(100, 100, 50);
    let _demand = world.demand(&manifest(1, 60));
    world.settle();
    let key = manifest(1, 60).key;
    let reason = world.residency.failure(&key).unwrap();
    assert_eq!(reason, "it needs 60 bytes on the device, this node has 50");
}

#[test]
fn a_hint_loads_into_host_memory_and_displaces_nothing_in_use() {
    let mut world = World::new(200, 80, 40);
    let [a, b, c] = [1, 2, 3].map(|id| manifest(id, 40));
    let _a = world.demand(&a);
    world.settle();
    world.residency.prefetch(&b, world.now);
    world.settle();
    assert_eq!(world.state(&b), ResidencyState::Host);
    let _b = world.demand(&b);
    world.residency.prefetch(&c, world.now);
    world.settle();
    assert_eq!(world.state(&b), ResidencyState::Host);
    assert_eq!(world.state(&c), ResidencyState::Disk);
}

#[test]
fn a_forgotten_adapter_leaves_every_tier_when_its_last_request_has_ended() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    let demand = world.demand(&a);
    world.settle();
    world.residency.forget(a.key);
    world.settle();
    assert!(world.is_on_device(&a), "a request still needs it");
    drop(demand);
    world.settle();
    assert!(world.residency.report().adapters.is_empty());
    assert_eq!(world.residency.report().disk.used, 0);
}

#[derive(Debug, Clone)]
enum Op {
    Demand(u8),
    End(usize),
    Lease(usize),
    Collect(usize),
    Perform { at: usize, ok: bool },
    Pass(u64),
    Prefetch(u8),
    Forget(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0u8..8).prop_map(Op::Demand),
        3 => any::<usize>().prop_map(Op::End),
        3 => any::<usize>().prop_map(Op::Lease),
        3 => any::<usize>().prop_map(Op::Collect),
        8 => (any::<usize>(), prop::bool::weighted(0.9))
            .prop_map(|(at, ok)| Op::Perform { at, ok }),
        2 => (0u64..800).prop_map(Op::Pass),
        1 => (0u8..8).prop_map(Op::Prefetch),
        1 => (0u8..8).prop_map(Op::Forget),
    ]
}

/// 10 to 45 bytes: true ranks differ.
fn numbered(id: u8) -> Arc<AdapterManifest> {
    manifest(id, 10 + 5 * u64::from(id))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn budgets_hold_and_every_demand_ends_on_the_device_or_with_a_reason(
        disk in 45u64..160, host in 45u64..160, device in 45u64..160,
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let mut world = World::new(disk, host, device);
        let mut demands: Vec<(u8, AdapterDemand)> = Vec::new();
        let mut leases: Vec<(AdapterKey, AdapterLease)> = Vec::new();
        for op in ops {
            match op {
                Op::Demand(id) => {
                    if let Ok(demand) = world.residency.demand(&numbered(id), world.now) {
                        demands.push((id, demand));
                    }
                }
                Op::End(i) if !demands.is_empty() => {
                    demands.swap_remove(i % demands.len());
                }
                Op::Lease(i) if !demands.is_empty() => {
                    let key = numbered(demands[i % demands.len()].0).key;
                    leases.extend(world.residency.lease(&key, world.now).map(|l| (key, l)));
                }
                Op::Collect(i) if !leases.is_empty() => {
                    leases.swap_remove(i % leases.len());
                }
                Op::Perform { at, ok } if !world.pending.is_empty() => {
                    world.perform(at % world.pending.len(), ok);
                }
                Op::Pass(ms) => world.now += Duration::from_millis(ms),
                Op::Prefetch(id) => world.residency.prefetch(&numbered(id), world.now),
                Op::Forget(id) => world.residency.forget(numbered(id).key),
                _ => {}
            }
            world.plan();
            let mut failed = Vec::new();
            world.residency.take_failures(&mut failed);
            demands.retain(|(id, _)| !failed.contains(&numbered(*id).key));
            for (key, lease) in &leases {
                prop_assert_eq!(world.residency.slots.owner(lease.slot()), Some(*key));
            }
        }
        // From here on all goes well: each demand must get its turn, however little fits.
        leases.clear();
        for _ in 0..demands.len() * 4 + 16 {
            world.settle();
            demands.retain(|(id, _)| {
                let key = numbered(*id).key;
                world.residency.lease(&key, world.now).is_none()
                    && world.residency.failure(&key).is_none()
            });
            world.now += world.residency.config.quantum;
        }
        prop_assert!(demands.is_empty(), "still waiting: {}", demands.len());
        prop_assert!(world.residency.is_unused());
    }
}
