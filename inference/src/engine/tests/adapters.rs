use super::harness::*;
use crate::adapters::{AdapterManifest, ResidencyState};
use crate::engine::{FinishReason, RequestError, WarmUpError};
use crate::share::TenantShare;
use std::sync::Arc;
use std::time::Duration;

const PROMPT: [u32; 6] = [1, 2, 4, 5, 6, 7];

#[test]
fn a_load_delays_only_the_requests_that_need_it() {
    let mut setup = Setup::default();
    setup.loader.delay = Duration::from_secs(5);
    let mut rig = Rig::new(&setup);
    let slow = adapter(1, 1, 10);
    let mut waiting = rig.submit(1, Some(&slow), &PROMPT, 10);
    let mut base = rig.submit(2, None, &PROMPT, 50);
    rig.finish(&mut [&mut base]);
    assert_eq!(base.usage().queue, Duration::ZERO);
    assert!(waiting.end.is_none());
    rig.finish(&mut [&mut waiting]);
    let usage = waiting.usage();
    assert!(usage.adapter_load >= Duration::from_secs(10), "{usage:?}");
    assert!(usage.queue >= usage.adapter_load);
}

#[test]
fn an_adapter_that_is_not_there_in_time_fails_its_requests_and_no_others() {
    let mut setup = Setup::default();
    setup.loader.delay = Duration::from_secs(4);
    setup.scheduler.queue_timeout = Duration::from_secs(5);
    let mut rig = Rig::new(&setup);
    let slow = adapter(1, 1, 10);
    let mut late = rig.submit(1, Some(&slow), &PROMPT, 5);
    let mut base = rig.submit(1, None, &PROMPT, 5);
    rig.finish(&mut [&mut late, &mut base]);
    assert_eq!(base.reason(), Some(FinishReason::Length));
    let reason = RequestError::AdapterLoad("it was not there within 5 s".into());
    assert_eq!(late.error(), Some(&reason));
    assert!(late.usage().queue >= Duration::from_secs(5));
    // Its bytes are on the disk by now: half of the load is done for whoever asks again.
    let mut again = rig.submit(1, Some(&slow), &PROMPT, 5);
    rig.finish(&mut [&mut again]);
    assert_eq!(again.reason(), Some(FinishReason::Length));
    rig.engine.assert_idle();
}

#[test]
fn a_failed_adapter_fails_its_own_requests_with_the_reason() {
    let (good, bad) = (adapter(1, 1, 10), adapter(1, 2, 10));
    let mut setup = Setup::default();
    setup.loader.failing.insert(bad.key.digest);
    let mut rig = Rig::new(&setup);
    let mut failed: Vec<_> = (0..3).map(|_| rig.submit(1, Some(&bad), &PROMPT, 10)).collect();
    let mut served = rig.submit(1, Some(&good), &PROMPT, 10);
    let mut all: Vec<_> = failed.iter_mut().chain([&mut served]).collect();
    rig.finish(&mut all);
    let reason = RequestError::AdapterLoad("no such object".into());
    assert!(failed.iter().all(|r| r.error() == Some(&reason)));
    assert_eq!(served.tokens, Rig::alone(Some(&good), &PROMPT, 10));
    let mut again = rig.submit(1, Some(&bad), &PROMPT, 10);
    rig.step();
    again.read();
    assert_eq!(again.error(), Some(&reason), "it is not tried again before its time");
}

#[test]
fn an_upload_that_the_device_refuses_fails_its_own_requests() {
    let (good, bad) = (adapter(1, 1, 10), adapter(1, 2, 10));
    let mut setup = Setup::default();
    setup.sim.faults.refused.push(bad.key.digest);
    let mut rig = Rig::new(&setup);
    let mut failed = rig.submit(1, Some(&bad), &PROMPT, 10);
    let mut served = rig.submit(1, Some(&good), &PROMPT, 10);
    rig.finish(&mut [&mut failed, &mut served]);
    assert!(matches!(failed.error(), Some(RequestError::AdapterLoad(_))));
    assert_eq!(served.reason(), Some(FinishReason::Length));
}

#[test]
fn more_adapters_than_room_rotate_and_keep_their_kv() {
    let mut setup = Setup::default();
    setup.capacity.adapter_bytes = 20;
    let mut rig = Rig::new(&setup);
    let adapters: Vec<_> = (1..=4).map(|id| adapter(1, id, 10)).collect();
    let mut readers: Vec<_> =
        adapters.iter().map(|a| rig.submit(1, Some(a), &PROMPT, 100)).collect();
    let mut prefilled = 0;
    while readers.iter().any(|r| r.end.is_none()) {
        let before = rig.handle.stats().last_step.step;
        rig.step();
        let step = rig.handle.stats().last_step;
        prefilled += if step.step > before { step.prefill_rows as usize } else { 0 };
        readers.iter_mut().for_each(Reader::read);
        // The one that waits longest waits for a quantum and a few swaps, never for an end.
        if readers.iter().any(|r| r.tokens.len() > 50) {
            assert!(readers.iter().all(|r| !r.tokens.is_empty()));
        }
    }
    assert_eq!(prefilled, 4 * PROMPT.len(), "no prompt was computed twice");
    for (reader, adapter) in readers.iter().zip(&adapters) {
        assert_eq!(reader.tokens, Rig::alone(Some(adapter), &PROMPT, 100));
    }
    rig.engine.assert_idle();
}

#[test]
fn a_request_that_cannot_be_scheduled_yet_has_its_adapter_loaded_meanwhile() {
    let mut setup = Setup::default();
    setup.capacity.num_blocks = 20;
    let mut rig = Rig::new(&setup);
    let long: Vec<u32> = (0..60).map(|i| i % 50).collect();
    let mut first = rig.submit(1, None, &long[..40], 35);
    rig.step();
    let wanted = adapter(1, 1, 10);
    let mut waiting = rig.submit(1, Some(&wanted), &long, 5);
    rig.steps(20);
    waiting.read();
    first.read();
    assert!(first.end.is_none() && waiting.tokens.is_empty(), "no block is free for its prompt");
    let report = rig.handle.stats().residency;
    assert!(matches!(report.adapters[0].state, ResidencyState::Device { .. }));
    rig.finish(&mut [&mut first, &mut waiting]);
    let usage = waiting.usage();
    assert!(usage.adapter_load < usage.queue, "{usage:?}");
}

/// Steps until a warm-up has been answered.
async fn warmed(rig: &mut Rig, adapter: &Arc<AdapterManifest>) -> Result<Duration, WarmUpError> {
    let (handle, adapter) = (rig.handle.clone(), adapter.clone());
    let warm_up =
        tokio::spawn(async move { handle.warm_up(adapter, TenantShare::default()).await });
    while !warm_up.is_finished() {
        tokio::task::yield_now().await;
        rig.step();
    }
    warm_up.await.unwrap()
}

#[tokio::test]
async fn a_warmed_up_adapter_is_on_the_device_before_its_first_request() {
    let mut rig = Rig::new(&Setup::default());
    let warm = adapter(1, 1, 10);
    let took = warmed(&mut rig, &warm).await.unwrap();
    assert!(took >= Duration::from_millis(7), "two loads and an upload: {took:?}");
    let again = warmed(&mut rig, &warm).await.unwrap();
    assert!(again < Duration::from_millis(3), "{again:?}");
    let mut reader = rig.submit(1, Some(&warm), &PROMPT, 5);
    rig.finish(&mut [&mut reader]);
    assert_eq!(reader.usage().adapter_load, Duration::ZERO);
    rig.engine.assert_idle();
}

#[tokio::test]
async fn a_warm_up_is_told_why_its_adapter_cannot_be_loaded_and_too_many_are_refused() {
    let (bad, other) = (adapter(1, 1, 10), adapter(2, 2, 10));
    let mut setup = Setup::default();
    setup.loader.failing.insert(bad.key.digest);
    let mut rig = Rig::new(&setup);
    let reason = WarmUpError::AdapterLoad("no such object".into());
    assert_eq!(warmed(&mut rig, &bad).await, Err(reason));

    let asked: Vec<_> = (0..17)
        .map(|id| {
            let (handle, adapter) = (rig.handle.clone(), adapter(1, 10 + id, 10));
            tokio::spawn(async move { handle.warm_up(adapter, TenantShare::default()).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(warmed(&mut rig, &other).await.is_ok(), "another tenant has its own places");
    rig.steps(200);
    let mut results = Vec::new();
    for warm_up in asked {
        results.push(warm_up.await.unwrap());
    }
    let full = results.iter().filter(|r| **r == Err(WarmUpError::QueueFull)).count();
    assert_eq!((full, results.iter().filter(|r| r.is_ok()).count()), (1, 16));
}

#[test]
fn a_cancelled_request_ends_a_download_that_nobody_else_wants() {
    let mut setup = Setup::default();
    setup.loader.delay = Duration::from_secs(60);
    let mut rig = Rig::new(&setup);
    let wanted = adapter(1, 1, 10);
    let mut reader = rig.submit(1, Some(&wanted), &PROMPT, 5);
    rig.steps(5);
    assert_eq!(rig.handle.stats().residency.disk.used, 10);
    rig.handle.cancel(reader.id);
    rig.finish(&mut [&mut reader]);
    rig.clock.wait_until(rig.clock.now() + setup.residency.abandon_after);
    rig.steps(3);
    assert_eq!(rig.handle.stats().residency.disk.used, 0);
}

#[test]
fn a_device_without_contiguous_room_makes_others_leave_instead_of_failing_the_adapter() {
    let mut setup = Setup::default();
    setup.capacity.adapter_bytes = 30;
    setup.sim.faults.fragmented = true;
    let mut rig = Rig::new(&setup);
    let adapters: Vec<_> = (1..=5).map(|id| adapter(1, id, 6 + u64::from(id))).collect();
    let mut readers: Vec<_> =
        adapters.iter().map(|a| rig.submit(1, Some(a), &PROMPT, 60)).collect();
    rig.finish(&mut readers.iter_mut().collect::<Vec<_>>());
    for (reader, adapter) in readers.iter().zip(&adapters) {
        assert_eq!(reader.reason(), Some(FinishReason::Length), "{:?}", reader.end);
        assert_eq!(reader.tokens, Rig::alone(Some(adapter), &PROMPT, 60));
    }
    rig.engine.assert_idle();
}

#[tokio::test]
async fn a_deleted_adapter_serves_those_who_have_it_and_then_leaves_every_tier() {
    let mut rig = Rig::new(&Setup::default());
    let deleted = adapter(1, 1, 10);
    let mut reader = rig.submit(1, Some(&deleted), &PROMPT, 30);
    rig.steps(20);
    rig.handle.forget(deleted.key).await;
    rig.finish(&mut [&mut reader]);
    assert_eq!(reader.tokens, Rig::alone(Some(&deleted), &PROMPT, 30));
    rig.steps(10);
    let report = rig.handle.stats().residency;
    assert!(report.adapters.is_empty());
    assert_eq!((report.disk.used, report.host.used, report.device.used), (0, 0, 0));
}

#[test]
fn an_adapter_of_one_request_gets_its_turn_among_those_of_many() {
    let mut setup = Setup { max_requests: 512, ..Setup::default() };
    setup.capacity.adapter_bytes = 10;
    setup.scheduler.max_num_seqs = 4;
    let mut rig = Rig::new(&setup);
    let popular: Vec<_> = (1..=2).map(|id| adapter(1, id, 10)).collect();
    let crowd = popular.iter().cycle().take(60);
    let mut crowd: Vec<_> = crowd.map(|a| rig.submit(1, Some(a), &PROMPT, 60)).collect();
    rig.steps(50);
    let mut lonely = rig.submit(1, Some(&adapter(1, 3, 10)), &PROMPT, 1);
    rig.finish(&mut [&mut lonely]);
    // Eight turns of each, with the swaps: its part would be one in thirty.
    let most = 16 * (setup.residency.quantum + 2 * setup.cost.upload);
    assert!(lonely.usage().queue < most, "{:?}", lonely.usage());
    crowd.iter_mut().for_each(Reader::read);
    assert!(crowd.iter().any(|reader| reader.end.is_none()), "there was a crowd all the time");
}

#[tokio::test]
async fn a_warm_up_waits_for_its_turn_as_its_tenants_requests_do() {
    let mut setup = Setup::default();
    setup.capacity.adapter_bytes = 10;
    setup.context_length = 500;
    let mut rig = Rig::new(&setup);
    // The second tenant has had far more by its weight than the first will have.
    let (mut request, mut reader) = request(1, Some(&adapter(1, 1, 10)), &PROMPT, 300);
    request.share.weight = 10_000;
    rig.try_submit(request).unwrap();
    rig.steps(20);
    let mut greedy = rig.submit(2, None, &PROMPT, 50);
    rig.finish(&mut [&mut greedy]);

    let (handle, cold) = (rig.handle.clone(), adapter(2, 2, 10));
    let warm_up = tokio::spawn(async move { handle.warm_up(cold, TenantShare::default()).await });
    tokio::task::yield_now().await;
    reader.read();
    while reader.end.is_none() {
        let before = reader.tokens.len();
        rig.step();
        reader.read();
        assert!(reader.end.is_some() || reader.tokens.len() == before + 1, "it keeps its place");
        assert!(!warm_up.is_finished());
    }
    while !warm_up.is_finished() {
        tokio::task::yield_now().await;
        rig.step();
    }
    assert!(warm_up.await.unwrap().is_ok());
}
