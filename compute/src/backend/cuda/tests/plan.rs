use crate::backend::BlockId;
use crate::backend::batch::SequenceId;
use crate::backend::cuda::check::smollm2;
use crate::backend::cuda::layout::{SCORED, TILE_ROWS, TOP_LOGPROBS};
use crate::backend::cuda::plan::{Limits, MAX_PARTIALS, StepPlan};
use crate::backend::{AdapterSlot, Input, LogitsWanted, SampleRequest, SequenceStep, StepBatch};
use crate::sampling::{SamplingParams, TokenMask};
use proptest::prelude::*;
use std::sync::Arc;

fn limits() -> Limits {
    Limits { spec: smollm2(2), max_rows: 4096, num_blocks: 1 << 20, multiprocessors: 132 }
}

/// Position, rows, and whose adapter.
fn parts() -> impl Strategy<Value = Vec<(u32, u32, Option<u32>)>> {
    let rows = prop_oneof![3 => Just(1u32), 1 => 1u32..200];
    let part = (0u32..3000, rows, prop::option::of(0u32..6));
    prop::collection::vec(part, 1..20)
}

fn batch(parts: &[(u32, u32, Option<u32>)]) -> StepBatch {
    let sequence =
        |(index, &(position, rows, adapter)): (u64, &(u32, u32, Option<u32>))| SequenceStep {
            sequence: SequenceId(index),
            input: Input::Tokens(vec![index as u32; rows as usize]),
            position,
            blocks: (0..(position + rows).div_ceil(16)).map(BlockId).collect(),
            adapter: adapter.map(|index| AdapterSlot { index, generation: 1 }),
            sample: None,
            logits: LogitsWanted::Last,
        };
    StepBatch { step: 1, sequences: (0..).zip(parts).map(sequence).collect() }
}

fn build(batch: &StepBatch) -> StepPlan {
    let mut plan = StepPlan::default();
    let extent = |slot: AdapterSlot| Ok(4096 + u64::from(slot.index) * 256);
    plan.build(batch, &limits(), &[], extent).expect("a good batch");
    plan
}

proptest! {
    #[test]
    fn every_row_is_in_one_tile_of_its_adapter(parts in parts()) {
        let batch = batch(&parts);
        let plan = build(&batch);
        let mut row = 0;
        for tile in &plan.tiles {
            prop_assert_eq!(tile.first_row, row);
            prop_assert!((1..=TILE_ROWS).contains(&tile.rows));
            for row in tile.first_row..tile.first_row + tile.rows {
                // Tokens name their sequence.
                let sequence = &batch.sequences[plan.rows[row as usize].token as usize];
                let adapter = sequence.adapter.map_or(0, |slot| 4096 + u64::from(slot.index) * 256);
                prop_assert_eq!(tile.adapter, adapter);
            }
            row += tile.rows;
        }
        prop_assert_eq!(row as usize, plan.rows.len());
        let counts = plan.counts;
        let first = counts.first_adapted_tile as usize;
        prop_assert!(plan.tiles[..first].iter().all(|t| t.adapter == 0));
        prop_assert!(plan.tiles[first..].iter().all(|t| t.adapter != 0));
    }

    #[test]
    fn attention_covers_each_row_and_all_that_it_sees_once(parts in parts()) {
        let plan = build(&batch(&parts));
        let mut seen = vec![0u32; plan.rows.len()];
        let mut partials = 0;
        for item in &plan.attention {
            prop_assert!(item.rows * 3 <= 64);
            for offset in 0..item.rows {
                let row = (item.first_row + offset) as usize;
                prop_assert_eq!(plan.rows[row].position, item.position + offset);
                seen[row] += item.position + offset + 1;
            }
        }
        for item in &plan.decode {
            prop_assert_eq!(item.kv_start % 16, 0);
            prop_assert_eq!(item.partial, partials);
            prop_assert!((item.first_partial..item.first_partial + item.partials).contains(&partials));
            seen[item.row as usize] += item.kv_end - item.kv_start;
            partials += 1;
        }
        prop_assert!(partials <= MAX_PARTIALS);
        for (row, seen) in plan.rows.iter().zip(seen) {
            prop_assert_eq!(seen, row.position + 1);
        }
    }
}

#[test]
fn parts_of_contexts_grow_when_there_would_be_too_many() {
    let spec = crate::backend::cuda::check::llama_8b(2);
    let limits = Limits { spec, ..limits() };
    let batch = batch(&[(4000, 1, None); 1000]);
    let mut plan = StepPlan::default();
    plan.build(&batch, &limits, &[], |_| Ok(0)).expect("a good batch");
    assert!(plan.decode.len() as u32 <= MAX_PARTIALS);
}

#[test]
fn a_previous_sample_is_read_where_the_last_step_left_it() {
    let mut batch = batch(&[(5, 1, None), (9, 1, None)]);
    for sequence in &mut batch.sequences {
        sequence.input = Input::PreviousSample;
    }
    let mut plan = StepPlan::default();
    let previous = [None, Some(SequenceId(1)), Some(SequenceId(0))];
    plan.build(&batch, &limits(), &previous, |_| Ok(0)).expect("both were sampled");
    assert_eq!(plan.rows.iter().map(|r| r.token).collect::<Vec<_>>(), [-3, -2]);
    assert!(plan.build(&batch, &limits(), &[None], |_| Ok(0)).is_err());
}

#[test]
fn a_scored_row_names_the_token_behind_it() {
    let mut batch = batch(&[(5, 3, Some(1)), (0, 2, None)]);
    batch.sequences[0].input = Input::Tokens(vec![10, 11, 12]);
    batch.sequences[1].input = Input::Tokens(vec![20, 21]);
    batch.sequences[0].logits = LogitsWanted::Scores { top: 2, next: Some(13) };
    batch.sequences[1].logits = LogitsWanted::Scores { top: 99, next: None };
    let plan = build(&batch);
    // The base model's rows come first.
    assert_eq!(plan.logit_rows, [0, 2, 3, 4]);
    let scored: Vec<_> = plan.draws.iter().map(|d| (d.wanted, d.scored, d.logprobs)).collect();
    let top = TOP_LOGPROBS;
    assert_eq!(scored, [(SCORED, 21, top), (SCORED, 11, 2), (SCORED, 12, 2), (SCORED, 13, 2)]);
    assert!(plan.logits.iter().all(|row| row.score && !row.sample && !row.copy));
    let sequences: Vec<_> = plan.logits.iter().map(|row| row.sequence).collect();
    assert_eq!(sequences, [1, 0, 0, 0]);
}

#[test]
fn each_masked_row_has_a_bit_for_every_token_of_the_vocabulary() {
    let words = limits().spec.vocab_size.div_ceil(32) as usize;
    let mut batch = batch(&[(5, 1, None), (9, 1, None), (3, 1, None), (4, 1, None)]);
    let masks = [Some(vec![1, 2]), None, Some(vec![7; words + 3]), Some(vec![])];
    for (sequence, mask) in batch.sequences.iter_mut().zip(&masks) {
        sequence.sample = Some(SampleRequest {
            params: SamplingParams::default(),
            output_index: 0,
            edits: Vec::new(),
            allowed: mask.clone().map(|words| Arc::new(TokenMask::new(words))),
            logprobs: None,
        });
    }
    let plan = build(&batch);
    assert_eq!(plan.draws.iter().map(|d| d.mask).collect::<Vec<_>>(), [1, 0, 2, 3]);
    let [short, long, empty] = std::array::from_fn(|i| &plan.masks[i * words..(i + 1) * words]);
    assert_eq!((&short[..2], short[2..].iter().max()), (&[1, 2][..], Some(&0)));
    assert_eq!(long, vec![7; words]);
    assert_eq!(empty, vec![0; words]);
}
