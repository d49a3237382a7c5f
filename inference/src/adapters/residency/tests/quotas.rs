//! What a tenant may have of host memory and of the device.

use super::*;

fn quota(host: Option<u64>, device: Option<u64>) -> TenantShare {
    TenantShare { host_bytes: host, device_bytes: device, ..TenantShare::default() }
}

#[test]
fn a_tenant_at_its_quota_makes_room_among_its_own_and_nobody_waits_for_it() {
    let mut world = World::new(400, 400, 400);
    let share = quota(None, Some(50));
    let [a, b] = [1, 2].map(|id| owned(1, id, 40));
    let other = owned(2, 3, 40);
    let _a = world.demand_with(&a, share);
    world.settle();
    let _b = world.demand_with(&b, share);
    let _other = world.demand(&other);
    world.settle();
    assert!(world.is_on_device(&a), "its quantum has not ended");
    assert!(world.is_on_device(&other), "another tenant's adapter goes ahead");
    assert_eq!(world.state(&b), ResidencyState::Host);
    world.now += world.residency.config.quantum;
    world.settle();
    assert!(world.is_on_device(&b) && world.is_on_device(&other));
    assert_eq!(world.state(&a), ResidencyState::Host);
}

#[test]
fn in_host_memory_a_quota_costs_the_tenants_own_copies() {
    let mut world = World::new(400, 400, 400);
    let share = quota(Some(50), None);
    let [a, b] = [1, 2].map(|id| owned(1, id, 40));
    let other = owned(2, 3, 40);
    for (m, share) in [(&a, share), (&other, TenantShare::default()), (&b, share)] {
        let _demand = world.demand_with(m, share);
        world.settle();
    }
    assert_eq!(world.residency.host.used_by(tenant(1)), 40);
    assert_eq!(world.residency.host.used_by(tenant(2)), 40);
}

#[test]
fn an_adapter_larger_than_its_tenants_quota_is_refused_with_the_numbers() {
    let mut world = World::new(400, 400, 400);
    let a = manifest(1, 60);
    let refusal = world.residency.demand(&a, quota(Some(50), None), world.now).unwrap_err();
    assert_eq!(refusal, "it needs 60 bytes in host memory, its tenant may have 50");
    let _demand = world.demand_with(&a, quota(None, Some(50)));
    world.settle();
    let reason = world.residency.failure(&a.key).unwrap();
    assert_eq!(reason, "it needs 60 bytes on the device, its tenant may have 50");
}

#[test]
fn a_quota_lowered_below_what_waits_fails_it_instead_of_leaving_it_waiting() {
    let mut world = World::new(400, 400, 400);
    let (a, b) = (manifest(1, 60), manifest(2, 10));
    let _a = world.demand(&a);
    world.plan();
    world.perform(0, End::Well);
    let _b = world.demand_with(&b, quota(Some(50), None));
    world.settle();
    let reason = world.residency.failure(&a.key).unwrap();
    assert_eq!(reason, "it needs 60 bytes in host memory, its tenant may have 50");
    assert!(world.is_on_device(&b));
}
