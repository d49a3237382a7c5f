//! Blocks and adapters in one memory.

use super::harness::*;
use lorikeet_compute::backend::Capacity;

/// 60 blocks, at least 11 of which stay: the longest sequence. Beside one adapter of 20 bytes, another
/// takes five blocks.
fn shared() -> Setup {
    let mut setup = Setup { context_length: 44, ..Setup::default() };
    setup.capacity = Capacity {
        num_blocks: 60,
        block_bytes: 4,
        least_blocks: 1,
        adapter_bytes: 20,
        ..setup.capacity
    };
    setup
}

/// Blocks, and bytes that adapters have.
fn border(rig: &Rig) -> (u32, u64) {
    let stats = rig.handle.stats();
    (stats.kv.total, stats.residency.device.capacity)
}

#[test]
fn room_that_tokens_do_not_need_serves_adapters_and_back() {
    let mut rig = Rig::new(&shared());
    assert_eq!(rig.engine.kv.num_blocks(), 60);
    let adapters: Vec<_> = (0..4).map(|id| adapter(1, id, 20)).collect();
    let mut adapted: Vec<_> =
        adapters.iter().map(|a| rig.submit(1, Some(a), &[1, 2, 3], 8)).collect();
    rig.finish(&mut adapted.iter_mut().collect::<Vec<_>>());
    assert_eq!(border(&rig), (45, 80), "all four fit");
    assert_eq!(rig.handle.stats().rotations, 0);

    // Five prompts of ten blocks each, and a block for each to go on in.
    let prompt = |text: u32| (0..40).map(|i| 4 + (i + text) % 60).collect::<Vec<u32>>();
    let mut plain: Vec<_> = (0..5).map(|text| rig.submit(2, None, &prompt(text), 4)).collect();
    let mut most = 0;
    while most < 5 {
        rig.step();
        let stats = rig.handle.stats();
        assert_eq!(stats.last_step.preempted, 0, "idle adapters leave first");
        most = most.max(stats.running);
    }
    rig.finish(&mut plain.iter_mut().collect::<Vec<_>>());
    let (blocks, bytes) = border(&rig);
    assert!(blocks >= 50, "{blocks}");
    assert_eq!(bytes, 20 + u64::from(60 - blocks) * 4);

    // And back again, though blocks are full of prefixes now.
    let mut again = rig.submit(1, Some(&adapters[0]), &[1, 2, 3], 2);
    let mut other = rig.submit(1, Some(&adapters[1]), &[1, 2, 3], 2);
    rig.finish(&mut [&mut again, &mut other]);
    assert!(rig.handle.stats().residency.device.used >= 40);
}

#[test]
fn adapters_take_turns_rather_than_blocks_that_waiting_requests_need() {
    let mut rig = Rig::new(&shared());
    let prompt = |text: u32| (0..40).map(|i| 4 + (i + text) % 60).collect::<Vec<u32>>();
    let mut plain: Vec<_> = (0..5).map(|text| rig.submit(2, None, &prompt(text), 4)).collect();
    let adapters: Vec<_> = (0..2).map(|id| adapter(1, id, 20)).collect();
    let mut adapted: Vec<_> =
        adapters.iter().map(|a| rig.submit(1, Some(a), &[1, 2, 3], 8)).collect();
    while plain.iter().any(|reader| reader.end.is_none()) {
        rig.step();
        assert_eq!(rig.handle.stats().last_step.preempted, 0);
        assert!(rig.engine.kv.num_blocks() >= 55, "what runs and waits has its blocks");
        plain.iter_mut().for_each(Reader::read);
    }
    rig.finish(&mut adapted.iter_mut().collect::<Vec<_>>());
}

#[test]
fn an_adapter_that_does_not_fit_the_least_is_refused_with_the_reason() {
    let mut rig = Rig::new(&shared());
    let mut reader = rig.submit(1, Some(&adapter(1, 0, 21)), &[1], 1);
    rig.finish(&mut [&mut reader]);
    let error = format!("{:?}", reader.error());
    assert!(error.contains("21 bytes on the device, this node has 20"), "{error}");
}
