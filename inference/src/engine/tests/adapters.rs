use super::harness::*;
use crate::adapters::ResidencyState;
use crate::engine::{FinishReason, RequestError};
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
fn a_hint_has_the_adapter_in_host_memory_before_the_request() {
    let mut rig = Rig::new(&Setup::default());
    let hinted = adapter(1, 1, 10);
    rig.handle.prefetch(hinted.clone());
    rig.steps(20);
    let report = rig.handle.stats().residency;
    assert_eq!(report.adapters[0].state, ResidencyState::Host);
    assert_eq!(report.host.used, 10);
    let mut reader = rig.submit(1, Some(&hinted), &PROMPT, 5);
    rig.finish(&mut [&mut reader]);
    assert!(reader.usage().adapter_load < Duration::from_millis(5));
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
