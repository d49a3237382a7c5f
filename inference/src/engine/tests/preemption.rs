//! Who loses its blocks, and what becomes of it.

use super::harness::*;

fn prompt(len: u32) -> Vec<u32> {
    (10..10 + len).collect()
}

#[test]
fn when_blocks_run_out_the_last_come_gives_way_and_all_end_as_if_alone() {
    let mut setup = Setup::default();
    setup.capacity.num_blocks = 12;
    let mut rig = Rig::new(&setup);
    let prompts: Vec<Vec<u32>> = (0..4).map(|i| (i..i + 6).collect()).collect();
    let mut readers: Vec<_> = prompts.iter().map(|p| rig.submit(1, None, p, 30)).collect();
    let mut preempted = 0;
    let mut ended = Vec::new();
    while readers.iter().any(|r| r.end.is_none()) {
        rig.step();
        preempted += rig.handle.stats().last_step.preempted;
        for (i, reader) in readers.iter_mut().enumerate() {
            reader.read();
            if reader.end.is_some() && !ended.contains(&i) {
                ended.push(i);
            }
        }
    }
    assert!(preempted > 0);
    assert_eq!(ended, [0, 1, 2, 3]);
    for (reader, prompt) in readers.iter().zip(&prompts) {
        assert_eq!(reader.tokens, Rig::alone(None, prompt, 30));
    }
    rig.engine.assert_idle();
}

#[test]
fn a_tenant_served_less_gets_the_blocks_of_one_served_more_and_keeps_its_own() {
    let mut setup = Setup::default();
    setup.capacity.num_blocks = 40;
    let mut rig = Rig::new(&setup);
    let mut busy: Vec<_> = (0..12).map(|_| rig.submit(1, None, &prompt(8), 100)).collect();
    rig.steps(15);
    let mut quiet = rig.submit(2, None, &prompt(8), 20);
    let mut arrived = Vec::new();
    for step in 0..40 {
        rig.step();
        quiet.read();
        arrived.resize(quiet.tokens.len(), step);
    }
    assert!(quiet.end.is_some(), "its turn is not when a busy one's answers end");
    assert!(arrived[0] < 10, "{arrived:?}");
    assert!(arrived.is_sorted_by(|a, b| b - a <= 1), "it never lost its blocks: {arrived:?}");
    rig.finish(&mut busy.iter_mut().collect::<Vec<_>>());
}

#[test]
fn nobody_loses_blocks_that_would_not_be_enough_for_the_newcomer() {
    let preempted = |num_blocks| {
        let mut setup = Setup::default();
        setup.capacity.num_blocks = num_blocks;
        let mut rig = Rig::new(&setup);
        let mut first = rig.submit(1, None, &prompt(60), 20);
        let mut busy = rig.submit(2, None, &prompt(8), 40);
        rig.steps(3);
        // It is owed much: whatever a tenant of less weight has had is more.
        let (mut request, mut newcomer) = request(3, None, &prompt(70), 5);
        request.share.weight = 10_000;
        rig.try_submit(request).unwrap();
        let mut preempted = 0;
        for _ in 0..10 {
            rig.step();
            preempted += rig.handle.stats().last_step.preempted;
        }
        rig.finish(&mut [&mut first, &mut busy, &mut newcomer]);
        preempted
    };
    // The first holds 16 or more and keeps them, the newcomer needs 18.
    assert_eq!(preempted(32), 0);
    assert_eq!(preempted(36), 1);
}
