//! In the steady state a step allocates nothing.

use super::harness::{Driver, GREEDY};
use super::tiny;
use crate::backend::BlockId;
use crate::backend::batch::SequenceId;
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::{
    AdapterSlot, Backend, Input, LogitsWanted, SampleRequest, SequenceStep, StepBatch,
};
use lorikeet_kit::allocations;

#[global_allocator]
static COUNTING: allocations::Counting = allocations::Counting;

/// Sequence i has the adapter of slot i mod 3, or none, and is at `position`.
fn batch(slots: &[AdapterSlot], count: u64, position: u32, tokens: usize, step: u64) -> StepBatch {
    let sequence = |index: u64| SequenceStep {
        sequence: SequenceId(index),
        input: Input::Tokens(vec![7; tokens]),
        position,
        blocks: (0..4).map(|block| BlockId(4 * index as u32 + block)).collect(),
        adapter: slots.get(index as usize % (slots.len() + 1)).copied(),
        sample: Some(SampleRequest { params: GREEDY, ..SampleRequest::default() }),
        logits: LogitsWanted::None,
    };
    StepBatch { step, sequences: (0..count).map(sequence).collect() }
}

#[test]
fn a_step_like_one_before_it_allocates_nothing() {
    let weights = tiny::model(1, true);
    // One thread, which is this one: the others would run the same code uncounted.
    let config = CpuConfig { threads: 1, kv_tokens: 16 * 1024, ..CpuConfig::default() };
    let mut driver = Driver::new(CpuBackend::new(&weights, config).expect("a backend"));
    let slots: Vec<AdapterSlot> = (0..3)
        .map(|i| driver.upload(i, tiny::adapter(10 + u64::from(i), &weights.config.spec)))
        .collect();
    let mut step = 0;
    let mut run = |position, tokens| {
        step += 1;
        let batch = batch(&slots, 40, position, tokens, step);
        let before = allocations::count();
        let ticket = driver.backend.submit(&batch).expect("a step");
        let output = driver.backend.collect(ticket).expect("an output");
        assert!(output.sequences.iter().all(|sequence| sequence.sampled.is_some()));
        driver.backend.recycle(output);
        allocations::count() - before
    };
    let first = run(0, 9);
    assert!(first > 0, "the count does not work");
    let positions = 9..40;
    run(positions.start, 1);
    for position in positions.skip(1) {
        assert_eq!(run(position, 1), 0, "decoding at {position}");
    }
    assert_eq!(run(0, 9), 0, "a second prefill");
}
