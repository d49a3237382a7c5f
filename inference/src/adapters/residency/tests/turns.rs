//! Whose place on the device is given to whom.

use super::*;

#[test]
fn a_slot_is_kept_while_a_step_reads_it_and_its_next_owner_has_another_generation() {
    let mut world = World::new(200, 200, 40);
    let (a, b) = (manifest(1, 40), manifest(2, 40));
    let demand = world.demand(&a);
    world.settle();
    let lease = world.residency.lease(&a.key).unwrap();
    drop(demand);
    let _other = world.demand(&b);
    world.settle();
    assert!(!world.is_on_device(&b));
    assert!(world.residency.lease(&a.key).is_none(), "it is on its way out");
    let slot = lease.slot();
    drop(lease);
    world.settle();
    let next = world.residency.lease(&b.key).unwrap().slot();
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
fn an_adapter_in_use_gives_way_at_once_when_it_does_not_run() {
    let mut world = World::new(100, 100, 40);
    let [a, b] = [1, 2].map(|id| manifest(id, 40));
    let _a = world.demand(&a);
    world.settle();
    let _b = world.demand(&b);
    world.settle();
    assert!(world.is_on_device(&a), "it runs, and its turn has not ended");
    let mut actions = Vec::new();
    for _ in 0..10 {
        world.residency.plan(world.now, &Claims::default(), 0, &mut actions);
    }
    assert!(matches!(actions[..], [AdapterAction::Evict(_), AdapterAction::Upload { .. }]));
}

#[test]
fn a_tenant_that_was_served_less_is_not_displaced_and_who_cannot_run_displaces_nobody_in_use() {
    let claims = |a: &AdapterManifest, served_a, b: &AdapterManifest, can_run_b| {
        let claim = |served, runnable| Claim { served, runnable, ..Claim::default() };
        let b_runs = u32::from(can_run_b);
        Claims::from([(a.key, claim(served_a, 1)), (b.key, claim(10, b_runs))])
    };
    let mut world = World::new(100, 100, 40);
    let [a, b] = [1, 2].map(|id| manifest(id, 40));
    let _a = world.demand(&a);
    world.settle();
    let _b = world.demand(&b);
    world.settle();
    world.now += world.residency.config.quantum;
    let mut actions = Vec::new();
    for (served_a, can_run_b) in [(9, true), (10, false), (100, false)] {
        world.residency.plan(world.now, &claims(&a, served_a, &b, can_run_b), 0, &mut actions);
        world.run();
    }
    assert!(actions.is_empty());
    world.residency.plan(world.now, &claims(&a, 10, &b, true), 0, &mut actions);
    assert!(matches!(actions[..], [AdapterAction::Evict(_), AdapterAction::Upload { .. }]));
}

#[test]
fn an_adapter_in_use_gives_way_to_a_first_token_after_four_swaps_and_to_others_after_the_quantum() {
    let quantum = ResidencyConfig::default().quantum;
    for (upload_ms, b_is_new, turn) in [
        (1, true, quantum / 32),
        (100, true, Duration::from_millis(400)),
        (10_000, true, quantum),
        (100, false, quantum),
    ] {
        let mut world = World::new(100, 100, 40);
        let [a, b] = [1, 2].map(|id| manifest(id, 40));
        let (_a, _b) = (world.demand(&a), world.demand(&b));
        while !matches!(world.pending.front(), Some(AdapterAction::Upload { .. })) {
            world.plan();
            let is_upload = |action: &AdapterAction| matches!(action, AdapterAction::Upload { .. });
            while world.pending.front().is_some_and(|action| !is_upload(action)) {
                world.perform(0, End::Well);
            }
        }
        world.now += Duration::from_millis(upload_ms);
        world.perform(0, End::Well);
        let claim = |is_new| Claim { is_new, ..Claim::default() };
        let claims = Claims::from([(a.key, claim(false)), (b.key, claim(b_is_new))]);
        let mut actions = Vec::new();
        world.now += turn - Duration::from_micros(1);
        world.run();
        world.residency.plan(world.now, &claims, 0, &mut actions);
        assert!(actions.is_empty(), "{upload_ms} {b_is_new}");
        world.now += Duration::from_micros(1);
        world.run();
        world.residency.plan(world.now, &claims, 0, &mut actions);
        assert!(matches!(actions[..], [AdapterAction::Evict(_), AdapterAction::Upload { .. }]));
    }
}

#[test]
fn who_waits_with_more_sequences_or_for_longer_comes_first() {
    let mut world = World::new(400, 400, 40);
    let [a, b, c] = [1, 2, 3].map(|id| manifest(id, 40));
    let mut demands = vec![world.demand(&a)];
    world.settle();
    demands.push(world.demand(&b));
    world.now += Duration::from_millis(100);
    demands.push(world.demand(&c));
    world.settle();
    let claim = |runnable, is_new| Claim { runnable, is_new, ..Claim::default() };
    let next = |world: &mut World, c_rows| {
        let rows = [(&a, 1), (&b, 1), (&c, c_rows)];
        let claims = rows.map(|(m, runnable)| (m.key, claim(runnable, false)));
        world.residency.plan(world.now, &Claims::from(claims), 0, &mut Vec::new());
        world.residency.wanted[0]
    };
    world.now += Duration::from_millis(20);
    assert_eq!(next(&mut world, 1), b.key, "120 ms against 20");
    assert_eq!(next(&mut world, 7), c.key, "120 ms against 7 x 20");
    assert_eq!(next(&mut world, 5), b.key, "120 ms against 5 x 20");
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
    let slot = world.residency.lease(&a.key).unwrap().slot();
    world.residency.runs(slot, world.now);
    let _c = world.demand(&c);
    world.settle();
    assert!(world.is_on_device(&a) && world.is_on_device(&c));
    assert_eq!(world.state(&b), ResidencyState::Host);
}

#[test]
fn an_upload_without_contiguous_room_waits_for_the_others_and_then_costs_more_of_them() {
    let mut world = World::new(400, 400, 100);
    let [a, b, c, d] = [1, 2, 3, 4].map(|id| manifest(id, 25));
    for m in [&a, &b, &c] {
        drop(world.demand(m));
        let demand = world.demand(m);
        world.settle();
        drop(demand);
        world.now += Duration::from_millis(1);
    }
    world.log.clear();
    let _d = world.demand(&d);
    while !matches!(world.pending.front(), Some(AdapterAction::Upload { .. })) {
        world.plan();
        if !matches!(world.pending.front(), Some(AdapterAction::Upload { .. })) {
            world.perform(0, End::Well);
        }
    }
    world.perform(0, End::NoRoom);
    assert_eq!(world.residency.failure(&d.key), None, "it is not the adapter's fault");
    world.plan();
    world.perform(0, End::Well);
    world.perform(0, End::NoRoom);
    world.settle();
    assert_eq!(
        world.log,
        ["fetch 4", "read 4", "upload 4", "evict", "upload 4", "evict", "upload 4"]
    );
    assert!(world.is_on_device(&d) && world.is_on_device(&c));
}

#[test]
fn an_upload_without_room_on_an_empty_device_is_the_adapters_failure() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 40);
    let _demand = world.demand(&a);
    for end in [End::Well, End::Well, End::NoRoom] {
        world.plan();
        world.perform(0, end);
    }
    assert!(world.residency.failure(&a.key).unwrap().contains("have no room"));
}

#[test]
fn small_adapters_and_those_of_heavy_tenants_are_kept_longer() {
    let mib = 1 << 20;
    let mut world = World::new(1000 * mib, 1000 * mib, 100 * mib);
    let heavy = TenantShare { weight: 400, ..TenantShare::default() };
    let (large, small) = (owned(1, 1, 40 * mib), owned(1, 2, mib));
    let weighty = owned(2, 3, 40 * mib);
    for (m, share) in [(&small, TenantShare::default()), (&weighty, heavy)] {
        let _demand = world.demand_with(m, share);
        world.settle();
        world.now += Duration::from_millis(200);
    }
    drop(world.demand(&large));
    let demand = world.demand(&large);
    world.settle();
    drop(demand);
    world.now += Duration::from_millis(200);
    let _another = world.demand(&owned(3, 4, 40 * mib));
    world.settle();
    assert!(!world.is_on_device(&large), "used last, and yet the first to go");
    assert!(world.is_on_device(&small) && world.is_on_device(&weighty));
}
