use super::store::{Answer, Answers, Bounds, Fingerprint, Found, KEPT};
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use lorikeet_contract::TenantId;
use proptest::prelude::*;
use std::time::{Duration, Instant};

const SMALL: Bounds = Bounds { node_bytes: 20_000, tenant_bytes: 8_000 };

fn answer(bytes: usize) -> Option<Answer> {
    let body = Bytes::from(vec![7; bytes]);
    Some(Answer { status: StatusCode::OK, headers: HeaderMap::new(), body })
}

fn request(n: u8) -> Fingerprint {
    Fingerprint([n; 32])
}

#[test]
fn a_key_runs_once_answers_for_ten_minutes_and_belongs_to_one_request_of_one_tenant() {
    let (mut answers, now) = (Answers::new(SMALL), Instant::now());
    let (ours, theirs) = (TenantId::new(), TenantId::new());
    assert_eq!(answers.find(ours, "k", request(1), now), Found::Nothing);
    assert_eq!(answers.find(ours, "k", request(1), now), Found::Running);
    assert_eq!(answers.find(ours, "k", request(2), now), Found::Other);
    assert_eq!(answers.find(theirs, "k", request(2), now), Found::Nothing);
    assert!(answers.grow(ours, "k", 100));
    answers.keep(ours, "k", answer(100), now);
    let before_the_end = now + KEPT - Duration::from_secs(1);
    let found = answers.find(ours, "k", request(1), before_the_end);
    assert!(matches!(found, Found::Answered(a) if Some(&*a) == answer(100).as_ref()));
    assert_eq!(answers.find(ours, "k", request(2), before_the_end), Found::Other);
    assert_eq!(answers.find(ours, "k", request(2), now + KEPT), Found::Nothing);
    answers.forget(theirs, "k");
    assert_eq!(
        answers.find(theirs, "k", request(1), now),
        Found::Nothing,
        "an error frees the key"
    );
    answers.check();
}

#[test]
fn an_answer_too_large_to_keep_is_not_run_again_all_the_same() {
    let (mut answers, now, tenant) = (Answers::new(SMALL), Instant::now(), TenantId::new());
    answers.find(tenant, "k", request(1), now);
    assert!(answers.grow(tenant, "k", 6_000));
    assert!(!answers.grow(tenant, "k", 6_000));
    assert!(answers.bytes() < 1_000, "what is not kept takes no room while the rest of it comes");
    answers.keep(tenant, "k", None, now);
    assert_eq!(answers.find(tenant, "k", request(1), now), Found::NotKept);
    answers.check();
}

#[test]
fn where_room_is_short_the_oldest_answer_goes_and_its_key_stays() {
    let (mut answers, now, tenant) = (Answers::new(SMALL), Instant::now(), TenantId::new());
    for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(answers.find(tenant, key, request(n as u8), now), Found::Nothing);
        assert!(answers.grow(tenant, key, 3_000));
        answers.keep(tenant, key, answer(3_000), now);
    }
    assert_eq!(answers.find(tenant, "a", request(0), now), Found::NotKept);
    for (n, key) in [(1, "b"), (2, "c")] {
        assert!(matches!(answers.find(tenant, key, request(n), now), Found::Answered(_)));
    }
    answers.check();
    for n in 0..20 {
        answers.find(tenant, &format!("more {n}"), request(9), now);
    }
    answers.check();
    assert_eq!(answers.find(tenant, "a", request(0), now), Found::Nothing, "no room for keys");
}

#[test]
fn where_the_nodes_room_is_short_what_runs_does_not_keep_what_has_ended_from_giving_way() {
    let (mut answers, now) = (Answers::new(SMALL), Instant::now());
    let [large, ended, growing] = std::array::from_fn(|_| TenantId::new());
    answers.find(large, "k", request(1), now);
    assert!(answers.grow(large, "k", 7_000));
    answers.find(ended, "k", request(1), now);
    assert!(answers.grow(ended, "k", 6_000));
    answers.keep(ended, "k", answer(6_000), now);
    answers.find(growing, "k", request(1), now);
    assert!(answers.grow(growing, "k", 6_000), "the largest one runs, another's has ended");
    assert_eq!(answers.find(ended, "k", request(1), now), Found::NotKept);
    answers.check();
}

proptest! {
    #[test]
    fn answers_stay_within_their_bounds_whatever_comes(
        steps in proptest::collection::vec((0usize..4, 0u8..12, 0u8..5, 1usize..5_000), 1..300),
    ) {
        let mut answers = Answers::new(SMALL);
        let tenants: Vec<TenantId> = (0..4).map(|_| TenantId::new()).collect();
        let mut now = Instant::now();
        let mut running: Vec<(usize, String)> = Vec::new();
        for (tenant, key, action, bytes) in steps {
            let name = key.to_string();
            let known = running.iter().position(|(t, k)| (*t, k) == (tenant, &name));
            match (action, known) {
                // As many at once as the bounds can keep track of.
                (0, None) if running.len() < 8 => {
                    let found = answers.find(tenants[tenant], &name, request(key), now);
                    prop_assert!(found != Found::Running && found != Found::Other);
                    if found == Found::Nothing {
                        running.push((tenant, name));
                    }
                }
                (0, Some(_)) => {
                    let found = answers.find(tenants[tenant], &name, request(key), now);
                    prop_assert_eq!(found, Found::Running);
                }
                (1, Some(i)) => {
                    running.swap_remove(i);
                    let room = answers.grow(tenants[tenant], &name, bytes);
                    answers.keep(tenants[tenant], &name, room.then(|| answer(bytes)).flatten(), now);
                }
                (2, Some(i)) => {
                    running.swap_remove(i);
                    answers.forget(tenants[tenant], &name);
                }
                (3, _) => now += Duration::from_millis(bytes as u64 * 50),
                _ => {}
            }
            answers.check();
            prop_assert!(answers.bytes() <= SMALL.node_bytes);
        }
        for (tenant, name) in running {
            answers.forget(tenants[tenant], &name);
        }
        // Whoever comes after everything has run out finds nothing else there.
        let later = now + KEPT + Duration::from_secs(60);
        answers.find(TenantId::new(), "last", request(0), later);
        answers.check();
        prop_assert!(answers.bytes() < 1_000);
    }
}
