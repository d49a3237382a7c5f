//! From tier to tier, and out again.

use super::*;

fn refused(world: &mut World, manifest: &Arc<AdapterManifest>) -> String {
    world.residency.demand(manifest, TenantShare::default(), world.now).unwrap_err()
}

/// A world with room for an adapter of 40 bytes, whose fetch is under way.
fn fetching() -> (World, Arc<AdapterManifest>, AdapterDemand) {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    let demand = world.demand(&a);
    world.plan();
    (world, a, demand)
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
        world.perform(0, End::Badly);
        let mut failed = Vec::new();
        world.residency.take_failures(&mut failed);
        assert_eq!(failed, [a.key]);
        drop(demand);
        let refusal = refused(&mut world, &a);
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
    world.perform(0, End::Badly);
    world.settle();
    assert_eq!(world.log, ["read 1", "fetch 1", "read 1", "upload 1"]);
    assert!(world.is_on_device(&a));
}

#[test]
fn an_adapter_that_no_room_is_enough_for_is_refused_with_the_numbers() {
    let mut world = World::new(100, 50, 100);
    let reason = refused(&mut world, &manifest(1, 60));
    assert_eq!(reason, "it needs 60 bytes in host memory, this node has 50");
    let mut world = World::new(100, 100, 50);
    let _demand = world.demand(&manifest(1, 60));
    world.settle();
    let key = manifest(1, 60).key;
    let reason = world.residency.failure(&key).unwrap();
    assert_eq!(reason, "it needs 60 bytes on the device, this node has 50");
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

#[test]
fn adapters_that_the_manifest_does_not_have_leave_the_disk_at_the_start() {
    let mut world = World::new(100, 100, 100);
    let (kept, deleted) = (manifest(1, 40), manifest(2, 40));
    for m in [&kept, &deleted] {
        assert!(world.residency.restore(CachedFile::of(m), world.now));
    }
    world.residency.retain(&HashSet::from([kept.key]));
    world.settle();
    assert_eq!(world.log, ["drop 2"]);
    assert_eq!(world.state(&kept), ResidencyState::Disk);
}

#[test]
fn a_fetch_that_nobody_wants_goes_on_for_a_while_and_is_then_broken_off() {
    let (mut world, a, demand) = fetching();
    drop(demand);
    world.plan();
    assert_eq!(world.pending.len(), 1, "whoever asks again finds it under way");
    let demand = world.demand(&a);
    world.now += world.residency.config.abandon_after;
    world.plan();
    assert_eq!(world.pending.len(), 1, "it is wanted");
    drop(demand);
    world.plan();
    world.now += world.residency.config.abandon_after;
    world.plan();
    world.perform(1, End::Well);
    world.settle();
    assert_eq!(world.log, ["cancel 1", "fetch 1"]);
    assert_eq!(world.residency.report().disk.used, 0);
}

#[test]
fn a_fetch_that_nobody_wants_gives_way_at_once_to_one_that_somebody_does() {
    let mut world = World::new(60, 100, 100);
    let (a, b) = (manifest(1, 40), manifest(2, 40));
    drop(world.demand(&a));
    let demand = world.demand(&a);
    world.plan();
    drop(demand);
    let _b = world.demand(&b);
    world.plan();
    world.perform(1, End::Well);
    world.settle();
    assert_eq!(world.log, ["cancel 1", "fetch 1", "fetch 2", "read 2", "upload 2"]);
}

#[test]
fn a_deleted_adapter_is_not_fetched_to_the_end_and_one_wanted_again_is_fetched_anew() {
    let (mut world, a, demand) = fetching();
    drop(demand);
    world.residency.forget(a.key);
    world.plan();
    assert_eq!(world.pending.len(), 2);
    world.perform(1, End::Well);
    let _again = world.demand(&a);
    world.settle();
    assert_eq!(world.log, ["cancel 1", "fetch 1", "fetch 1", "read 1", "upload 1"]);
}

#[test]
fn a_fetch_that_takes_too_long_fails_those_who_wait_and_is_broken_off() {
    let (mut world, a, _demand) = fetching();
    world.now += world.residency.config.download_deadline;
    world.plan();
    let mut failed = Vec::new();
    world.residency.take_failures(&mut failed);
    assert_eq!(failed, [a.key]);
    assert_eq!(world.residency.failure(&a.key), Some("it did not arrive within 120 s"));
    world.perform(1, End::Well);
    world.settle();
    assert_eq!(world.log, ["cancel 1", "fetch 1"]);
    let mut failed = Vec::new();
    world.residency.take_failures(&mut failed);
    assert!(failed.is_empty(), "its end is not a second failure");
}
