use super::bucket::TokenBucket;
use super::*;
use proptest::prelude::*;

fn limits(requests: Option<u64>, tokens: Option<u64>, at_once: Option<u32>) -> Allowance {
    let limits = TenantLimits {
        max_concurrency: at_once,
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        ..TenantLimits::default()
    };
    Allowance::new(&limits, RateShare::ALONE)
}

fn per_minute(units: u64) -> Rate {
    Rate::per_minute_thousandths(u128::from(units) * 1000)
}

const MINUTE: u128 = 60_000_000_000;

proptest! {
    /// Whatever is asked and when: between any two moments no more is given than a full bucket and what
    /// the rate refills in between.
    #[test]
    fn no_stretch_of_time_gets_more_than_a_full_bucket_and_the_rate(
        rate in 1u64..500,
        asks in proptest::collection::vec((0u64..5_000, 0u64..200), 1..80),
    ) {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(per_minute(rate), start);
        let mut at = Duration::ZERO;
        let mut given: Vec<(Duration, u64)> = Vec::new();
        for (wait_ms, cost) in asks {
            at += Duration::from_millis(wait_ms);
            if bucket.take(per_minute(rate), cost, start + at).is_ok() {
                given.push((at, cost));
            }
        }
        for from in 0..given.len() {
            for to in from..given.len() {
                let sum: u64 = given[from..=to].iter().map(|(_, cost)| cost).sum();
                // One that a full bucket cannot hold is let through on its own and owed afterwards.
                let excess = given[to].1.saturating_sub(rate);
                let stretch = (given[to].0 - given[from].0).as_nanos();
                let refilled = u128::from(rate) * stretch;
                prop_assert!(
                    u128::from(sum - excess) * MINUTE <= u128::from(rate) * MINUTE + refilled,
                    "{sum} in {stretch} ns at {rate} a minute"
                );
            }
        }
    }

    #[test]
    fn the_wait_that_is_told_is_exact(
        rate in 1u64..100_000, used in 0u64..200_000, cost in 1u64..200_000, wait_ms in 0u64..60_000,
    ) {
        let start = Instant::now();
        let rate = per_minute(rate);
        let mut bucket = TokenBucket::full(rate, start);
        bucket.charge(used);
        let now = start + Duration::from_millis(wait_ms);
        let Err(wait) = bucket.clone().take(rate, cost, now) else { return Ok(()) };
        let wait = wait.expect("it refills");
        prop_assert!(wait > Duration::ZERO);
        let early = now + wait - Duration::from_nanos(1);
        prop_assert!(bucket.clone().take(rate, cost, early).is_err());
        prop_assert!(bucket.take(rate, cost, now + wait).is_ok());
    }

    /// Any number of requests, ended in any order: everything taken and not used comes back.
    #[test]
    fn what_ends_unused_comes_back_and_an_idle_tenant_is_forgotten(
        requests in proptest::collection::vec((0u64..50, 0u64..50, prop_oneof![Just(0u64), 1..80u64], any::<bool>()), 0..20),
        order in any::<prop::sample::Index>(),
    ) {
        let now = Instant::now();
        let limiter = Arc::new(Limiter::default());
        let (tenant, allowance) = (TenantId::new(), limits(Some(30), Some(1000), Some(12)));
        let mut permits = Vec::new();
        let (mut entered, mut used) = (0, 0);
        for (prompt, completion, generated, gives_up) in requests {
            let Ok(permit) = limiter.enter(tenant, allowance, now) else { continue };
            let reserved = !gives_up && permit.reserve(prompt, completion, now).is_ok();
            if reserved && generated == 0 {
                permit.withdraw();
            } else if reserved {
                permit.generated(generated);
                entered += 1;
                used += prompt + generated;
            }
            permits.push(permit);
        }
        if !permits.is_empty() {
            let first = order.index(permits.len());
            permits.rotate_left(first);
        }
        drop(permits);
        let levels = limiter.levels(tenant, allowance, now);
        prop_assert_eq!(levels.requests.map(|l| l.remaining), Some(30 - entered));
        prop_assert_eq!(levels.tokens.map(|l| l.remaining), Some(1000u64.saturating_sub(used)));
        // Debt included.
        let later = now + Duration::from_secs(60) * (2 + used as u32 / 1000);
        prop_assert!(limiter.lock().by_tenant.get_mut(&tenant).is_none_or(|a| a.is_idle(later)));
    }
}

#[test]
fn a_place_is_free_again_when_a_request_ends() {
    let (now, limiter, tenant) = (Instant::now(), Arc::new(Limiter::default()), TenantId::new());
    let allowance = limits(None, None, Some(2));
    let _first = limiter.enter(tenant, allowance, now).expect("one");
    let second = limiter.enter(tenant, allowance, now).expect("two");
    let error = limiter.enter(tenant, allowance, now).expect_err("three");
    assert_eq!(error, Exceeded::Concurrency { limit: 2 });
    assert!(limiter.enter(TenantId::new(), allowance, now).is_ok(), "another tenant's are its own");
    drop(second);
    assert!(limiter.enter(tenant, allowance, now).is_ok());
}

#[test]
fn a_refusal_names_the_limit_the_nodes_part_of_it_and_the_wait() {
    let (now, limiter, tenant) = (Instant::now(), Arc::new(Limiter::default()), TenantId::new());
    let of_two = TenantLimits { requests_per_minute: Some(2), ..TenantLimits::default() };
    let share = RateShare::new(2, 0).expect("a share");
    let allowance = Allowance::new(&of_two, share);
    drop(reserved(limiter.enter(tenant, allowance, now).expect("its part"), now));
    let error = limiter.enter(tenant, allowance, now).expect_err("more than its part");
    assert_eq!(error.retry_after(), Duration::from_secs(60));
    let message = error.to_string();
    for part in ["2 requests per minute", "part is 1", "60 s"] {
        assert!(message.contains(part), "{message}");
    }
    let error = limiter.enter(tenant, limits(Some(0), None, None), now).expect_err("nothing");
    assert_eq!(error.to_string(), "The account may make no requests. Ask for a limit above zero.");
}

fn reserved(permit: Permit, now: Instant) -> Permit {
    permit.reserve(0, 0, now).expect("no limit of tokens");
    permit
}

#[test]
fn an_answer_without_max_tokens_is_charged_as_it_comes_and_owed() {
    let (now, limiter, tenant) = (Instant::now(), Arc::new(Limiter::default()), TenantId::new());
    let allowance = limits(None, Some(100), None);
    let long = limiter.enter(tenant, allowance, now).expect("a place");
    long.reserve(10, 0, now).expect("the prompt fits");
    long.generated(150);
    let next = limiter.enter(tenant, allowance, now).expect("a place");
    let error = next.reserve(1, 0, now).expect_err("60 are owed");
    // 61 tokens at 100 a minute.
    assert_eq!(error.retry_after().as_millis(), 36_600);
    let later = now + Duration::from_millis(36_600);
    assert_eq!(next.reserve(1, 0, later), Ok(()));
}

#[test]
fn a_limit_of_less_than_one_a_node_still_lets_one_request_through() {
    let one = TenantLimits { requests_per_minute: Some(1), ..TenantLimits::default() };
    let share = RateShare::new(4, 3).expect("a share");
    let (now, limiter, tenant) = (Instant::now(), Arc::new(Limiter::default()), TenantId::new());
    let allowance = Allowance::new(&one, share);
    drop(reserved(limiter.enter(tenant, allowance, now).expect("one"), now));
    let wait = limiter.enter(tenant, allowance, now).expect_err("a quarter a minute").retry_after();
    assert_eq!(wait.as_secs(), 240);
}

#[test]
fn a_share_that_grows_gives_nothing_at_once_and_one_that_shrinks_takes_the_surplus() {
    let (now, limiter, tenant) = (Instant::now(), Arc::new(Limiter::default()), TenantId::new());
    let minute = TenantLimits { tokens_per_minute: Some(1000), ..TenantLimits::default() };
    let of = |nodes| Allowance::new(&minute, RateShare::new(nodes, 0).expect("a share"));
    let remaining =
        |allowance, at| limiter.levels(tenant, allowance, at).tokens.expect("a limit").remaining;
    assert_eq!(remaining(of(2), now), 500);
    assert_eq!(remaining(of(1), now), 500, "no more for the moment");
    assert_eq!(remaining(of(1), now + Duration::from_secs(30)), 1000);
    assert_eq!(remaining(of(4), now + Duration::from_secs(30)), 250);
}

#[test]
fn tenants_that_come_and_go_leave_nothing_behind() {
    let limiter = Arc::new(Limiter::default());
    let mut now = Instant::now();
    for _ in 0..10_000 {
        now += Duration::from_millis(100);
        drop(limiter.enter(TenantId::new(), limits(Some(600), Some(600), None), now));
    }
    let held = limiter.lock().by_tenant.len();
    assert!(held < 100, "{held} accounts are held");
}
