//! Pinned adapters.

use super::*;

#[test]
fn a_pinned_adapter_is_loaded_ahead_and_stays_while_others_come_and_go() {
    let mut world = World::new(400, 100, 100);
    let pinned = manifest(1, 40);
    world.pin(&[&pinned]);
    world.settle();
    assert_eq!(world.log, ["fetch 1", "read 1", "upload 1"]);
    for id in 2..8 {
        let _demand = world.demand(&manifest(id, 40));
        world.now += Duration::from_secs(1);
        world.settle();
        assert!(world.is_on_device(&manifest(id, 40)), "the rest is everybody's");
    }
    assert!(world.is_on_device(&pinned));
    assert!(world.residency.entry(&pinned.key).host_bytes() > 0);
    assert_eq!(world.log.iter().filter(|line| line.ends_with(" 1")).count(), 3);
}

#[test]
fn a_pin_that_does_not_fit_is_refused_and_its_adapter_served_like_any_other() {
    let mut world = World::new(400, 100, 100);
    let (first, second) = (manifest(1, 40), manifest(2, 20));
    world.pin(&[&first, &second]);
    world.settle();
    assert!(world.is_on_device(&first));
    let report = world.residency.report();
    let of = |m: &AdapterManifest| report.adapters.iter().find(|a| a.key == m.key).unwrap().pin;
    assert_eq!(of(&first), Some(PinState::Held));
    let Some(PinState::Refused(refusal)) = of(&second) else { panic!() };
    assert_eq!(
        refusal.to_string(),
        "pins may take 50 bytes of host memory, and no more is left of them"
    );
    assert_eq!(world.state(&second), ResidencyState::Absent);
    let _demand = world.demand(&second);
    world.settle();
    assert!(world.is_on_device(&second));

    world.pin(&[&second]);
    world.settle();
    let held = |m: &AdapterManifest| world.residency.entry(&m.key).is_held();
    assert!(held(&second) && !held(&first));
}

#[test]
fn pins_are_held_within_their_tenants_quota() {
    let mut world = World::new(400, 400, 400);
    let share = TenantShare { device_bytes: Some(50), ..TenantShare::default() };
    let (first, second) = (manifest(1, 40), manifest(2, 20));
    world.pin_with(&[&first, &second], share);
    world.settle();
    let refusal = PinRefusal::DeviceQuota { quota: 50 };
    assert_eq!(world.residency.entry(&second.key).pin, Some(PinState::Refused(refusal)));
    let _demand = world.demand(&second);
    world.settle();
    assert!(world.residency.entry(&second.key).is_held(), "its quota was lifted");
    assert!(world.is_on_device(&first) && world.is_on_device(&second));
}

#[test]
fn an_adapter_without_room_beside_the_pins_displaces_them_and_they_come_back() {
    let mut world = World::new(400, 200, 100);
    let (pinned, large) = (manifest(1, 40), manifest(2, 80));
    world.pin(&[&pinned]);
    world.settle();
    let demand = world.demand(&large);
    world.settle();
    assert!(world.is_on_device(&large) && !world.is_on_device(&pinned));
    drop(demand);
    world.settle();
    assert!(world.is_on_device(&pinned) && !world.is_on_device(&large));
}

#[test]
fn a_pin_that_failed_to_load_is_tried_again_by_itself() {
    let mut world = World::new(100, 100, 100);
    let pinned = manifest(1, 40);
    world.pin(&[&pinned]);
    world.plan();
    world.perform(0, End::Badly);
    world.settle();
    assert!(matches!(world.state(&pinned), ResidencyState::Failed { .. }));
    world.now += world.residency.config.retry_min;
    world.settle();
    assert!(world.is_on_device(&pinned));
}

#[test]
fn an_adapter_no_longer_pinned_may_go_and_one_deleted_goes() {
    let mut world = World::new(400, 100, 40);
    let (a, b) = (manifest(1, 20), manifest(2, 30));
    world.pin(&[&a]);
    world.settle();
    world.pin(&[]);
    let _b = world.demand(&b);
    world.settle();
    assert!(world.is_on_device(&b) && !world.is_on_device(&a));

    world.pin(&[&a]);
    world.residency.forget(a.key);
    world.settle();
    assert!(world.residency.report().adapters.iter().all(|adapter| adapter.key != a.key));
}

#[test]
fn a_pin_that_is_deleted_before_it_is_looked_at_is_not_brought_back() {
    let mut world = World::new(100, 100, 100);
    let a = manifest(1, 10);
    world.pin(&[&a]);
    world.settle();
    world.pin(&[&a]);
    world.residency.forget(a.key);
    world.settle();
    assert_eq!(world.state(&a), ResidencyState::Absent);
}
