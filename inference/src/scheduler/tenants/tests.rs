use super::*;
use proptest::prelude::*;
use uuid::Uuid;

fn tenant(id: u128) -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(id))
}

/// Takes everything that is ready, at a cost for each.
fn drain(tenants: &mut Tenants, cost: Cost, ready: impl Fn(u64) -> bool) -> Vec<u64> {
    let mut order = Vec::new();
    tenants.begin_pass();
    while let Some((turn, id, ())) = tenants.next(|id| ready(id.0).then_some(())) {
        tenants.take(turn);
        tenants.charge(turn.account, cost);
        order.push(id.0);
    }
    order
}

#[test]
fn tenants_with_equal_weights_take_turns_and_each_is_served_in_order_of_arrival() {
    let mut tenants = Tenants::default();
    for (t, id) in [(1, 1), (1, 2), (1, 3), (2, 4), (3, 5), (2, 6)] {
        let account = tenants.open(tenant(t), 100);
        tenants.arrive(account, SequenceId(id));
    }
    assert_eq!(drain(&mut tenants, Cost::prompt(10), |_| true), [1, 4, 5, 2, 6, 3]);
    assert_eq!(tenants.len(), 0);
}

#[test]
fn a_tenant_of_twice_the_weight_gets_twice_as_much() {
    let mut tenants = Tenants::default();
    for id in 0..12 {
        let (t, weight) = if id % 2 == 0 { (1, 200) } else { (2, 100) };
        let account = tenants.open(tenant(t), weight);
        tenants.arrive(account, SequenceId(id));
    }
    let order = drain(&mut tenants, Cost::prompt(10), |_| true);
    assert_eq!(order[..9].iter().filter(|id| *id % 2 == 0).count(), 6);
}

#[test]
fn one_that_is_not_ready_holds_up_nobody_and_keeps_its_place() {
    let mut tenants = Tenants::default();
    let account = tenants.open(tenant(1), 100);
    for id in [1, 2, 3] {
        tenants.arrive(account, SequenceId(id));
    }
    assert_eq!(drain(&mut tenants, Cost::prompt(1), |id| id != 1), [2, 3]);
    tenants.arrive(account, SequenceId(4));
    assert_eq!(drain(&mut tenants, Cost::prompt(1), |_| true), [1, 4]);
}

#[test]
fn one_that_lost_its_room_goes_before_those_that_arrived_later() {
    let mut tenants = Tenants::default();
    let account = tenants.open(tenant(1), 100);
    for id in [3, 5, 2] {
        tenants.wait(account, SequenceId(id));
    }
    tenants.remove(account, SequenceId(3));
    assert_eq!(drain(&mut tenants, Cost::prompt(1), |_| true), [2, 5]);
}

#[test]
fn a_tenant_that_was_idle_has_saved_nothing_up() {
    let mut tenants = Tenants::default();
    let (busy, idle) = (tenants.open(tenant(1), 100), tenants.open(tenant(2), 100));
    tenants.arrive(busy, SequenceId(0));
    tenants.charge(busy, Cost::prompt(1_000_000));
    for id in 1..=4 {
        tenants.arrive(idle, SequenceId(id));
        tenants.arrive(busy, SequenceId(id + 10));
    }
    assert_eq!(drain(&mut tenants, Cost::prompt(1), |_| true), [0, 1, 2, 11, 3, 12, 4, 13, 14]);
    // With nobody waiting, the level is that of the last who did.
    let third = tenants.open(tenant(3), 100);
    tenants.arrive(third, SequenceId(50));
    assert!(tenants.served(third) >= tenants.served(idle));
}

proptest! {
    /// Theorem 4.4 of the paper: between two tenants that wait all the time, the service by weight
    /// differs by at most what one request costs each.
    #[test]
    fn between_two_that_wait_service_by_weight_differs_by_at_most_one_request(
        weights in prop::collection::vec(1u32..1000, 2..6),
        costs in prop::collection::vec(1usize..500, 1..200),
    ) {
        let mut tenants = Tenants::default();
        let accounts: Vec<_> = (0..).zip(&weights)
            .map(|(t, weight)| tenants.open(tenant(t), *weight)).collect();
        let mut next_id = 0;
        for account in &accounts {
            for _ in 0..costs.len() {
                tenants.arrive(*account, SequenceId(next_id));
                next_id += 1;
            }
        }
        for cost in costs {
            tenants.begin_pass();
            let (turn, _, ()) = tenants.next(|_| Some(())).expect("all wait");
            tenants.take(turn);
            tenants.charge(turn.account, Cost::prompt(cost));
            let served = || accounts.iter().map(|a| tenants.served(*a).0);
            let least_weight = u64::from(*weights.iter().min().expect("some"));
            let bound = 500 * 1000 * SCALE / least_weight;
            let (least, most) = (served().min().expect("some"), served().max().expect("some"));
            prop_assert!(most - least <= bound);
        }
    }
}
