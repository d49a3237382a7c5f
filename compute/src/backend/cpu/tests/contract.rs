//! What the backend's trait promises: slots, budgets, and batches that break its rules.

use super::harness::Driver;
use super::tiny;
use crate::backend::BlockId;
use crate::backend::batch::SequenceId;
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::{
    AdapterSlot, Backend, BackendError, HostAdapter, Input, LogitsWanted, SequenceStep, StepBatch,
    UploadDone,
};
use std::sync::Arc;

fn backend(adapter_bytes: u64) -> CpuBackend {
    let config =
        CpuConfig { kv_tokens: 256, adapter_bytes, max_slots: 4, max_rows: 64, threads: 2 };
    CpuBackend::new(&tiny::model(1, true), config).unwrap()
}

fn adapter(seed: u64) -> HostAdapter {
    tiny::adapter(seed, &tiny::model(1, true).config.spec)
}

fn slot(index: u32, generation: u32) -> AdapterSlot {
    AdapterSlot { index, generation }
}

fn prepared(backend: &CpuBackend, seed: u64) -> Arc<HostAdapter> {
    Arc::new(backend.host_allocator().prepare(adapter(seed)).unwrap())
}

fn upload(
    backend: &mut CpuBackend,
    slot: AdapterSlot,
    adapter: &Arc<HostAdapter>,
) -> Result<(), BackendError> {
    backend.begin_upload(slot, adapter.clone())
}

fn finish(backend: &mut CpuBackend) -> Vec<UploadDone> {
    let mut done = Vec::new();
    backend.poll_uploads(&mut done);
    done
}

fn sequence(adapter: Option<AdapterSlot>) -> SequenceStep {
    SequenceStep {
        sequence: SequenceId(1),
        input: Input::Tokens(vec![1, 2, 3]),
        position: 0,
        blocks: vec![BlockId(0)],
        adapter,
        sample: None,
        logits: LogitsWanted::Last,
    }
}

fn submit(backend: &mut CpuBackend, sequence: SequenceStep) -> Result<Vec<f32>, BackendError> {
    let ticket = backend.submit(&StepBatch { step: 9, sequences: vec![sequence] })?;
    Ok(backend.collect(ticket)?.sequences.remove(0).logits.remove(0))
}

#[test]
fn a_stale_slot_is_an_error_and_never_read() {
    let mut backend = backend(1 << 20);
    let (one, two) = (prepared(&backend, 1), prepared(&backend, 2));
    upload(&mut backend, slot(0, 1), &one).unwrap();
    let early = submit(&mut backend, sequence(Some(slot(0, 1))));
    assert!(matches!(early, Err(BackendError::Adapter(_))), "before its upload was polled");
    finish(&mut backend).remove(0).result.unwrap();
    let first = submit(&mut backend, sequence(Some(slot(0, 1)))).unwrap();
    assert_ne!(first, submit(&mut backend, sequence(None)).unwrap());

    backend.evict(slot(0, 1));
    upload(&mut backend, slot(0, 2), &two).unwrap();
    finish(&mut backend).remove(0).result.unwrap();
    for stale in [slot(0, 1), slot(0, 3), slot(1, 1), slot(99, 1)] {
        let error = submit(&mut backend, sequence(Some(stale))).unwrap_err();
        assert!(error.to_string().contains(&format!("slot {}", stale.index)), "{error}");
    }
    assert_ne!(submit(&mut backend, sequence(Some(slot(0, 2)))).unwrap(), first);
    backend.evict(slot(0, 1));
    submit(&mut backend, sequence(Some(slot(0, 2)))).expect("a stale evict frees nothing");
}

#[test]
fn adapters_fill_the_budget_at_their_true_rank_and_free_it_again() {
    let needed = backend(0).adapter_bytes(&adapter(1).header);
    let exact: u64 = adapter(1)
        .header
        .modules
        .iter()
        .map(|m| {
            let rank = u64::from(m.rank.next_multiple_of(2));
            let gain = if m.magnitude.is_some() { 4 * u64::from(m.out_features) } else { 0 };
            rank * u64::from(m.in_features + m.out_features) * 2 + gain
        })
        .sum();
    assert_eq!(needed, exact);
    let mut backend = backend(needed * 2 - 1);
    let adapter = prepared(&backend, 1);
    for round in 1..5 {
        upload(&mut backend, slot(0, round), &adapter).unwrap();
        let refused = upload(&mut backend, slot(1, round), &adapter).unwrap_err();
        assert!(matches!(refused, BackendError::OutOfMemory { bytes, .. } if bytes == needed));
        finish(&mut backend).remove(0).result.unwrap();
        backend.evict(slot(0, round));
    }
}

#[test]
fn an_upload_ends_once_also_when_its_slot_is_evicted_meanwhile() {
    let mut backend = backend(1 << 20);
    let (one, two) = (prepared(&backend, 1), prepared(&backend, 2));
    upload(&mut backend, slot(2, 1), &one).unwrap();
    backend.evict(slot(2, 1));
    upload(&mut backend, slot(2, 2), &two).unwrap();
    let done = finish(&mut backend);
    assert_eq!(done.iter().map(|d| d.slot.generation).collect::<Vec<_>>(), [1, 2]);
    assert!(done[0].result.is_err());
    assert!(done[1].result.is_ok());
    submit(&mut backend, sequence(Some(slot(2, 2)))).unwrap();
}

#[test]
fn slots_that_are_taken_or_do_not_exist_are_refused() {
    let mut backend = backend(1 << 20);
    let adapter = prepared(&backend, 1);
    upload(&mut backend, slot(0, 1), &adapter).unwrap();
    assert!(upload(&mut backend, slot(0, 2), &adapter).is_err());
    assert!(upload(&mut backend, slot(4, 1), &adapter).is_err());
}

#[test]
fn an_adapter_that_was_not_prepared_is_refused_and_takes_no_room() {
    let mut backend = backend(backend(0).adapter_bytes(&adapter(1).header));
    let exact = CpuBackend::exact(&tiny::model(1, true), CpuConfig::default()).unwrap();
    let of_another = exact.host_allocator().prepare(adapter(1)).unwrap();
    for adapter in [adapter(1), of_another] {
        let refused = upload(&mut backend, slot(0, 1), &Arc::new(adapter)).unwrap_err();
        assert!(matches!(refused, BackendError::Adapter(_)), "{refused}");
    }
    let prepared = prepared(&backend, 1);
    upload(&mut backend, slot(0, 1), &prepared).unwrap();
}

#[test]
fn an_adapter_that_does_not_fit_the_model_fails_alone() {
    let break_it: [fn(&mut HostAdapter); 5] = [
        |a| a.header.modules[0].layer = 3,
        |a| a.header.modules[0].in_features += 1,
        |a| a.header.modules[0].out_features *= 2,
        |a| a.header.modules.push(a.header.modules[0].clone()),
        |a| a.header.modules[0].b.offset = 1 << 40,
    ];
    let memory = backend(1 << 20).host_allocator();
    for break_it in break_it {
        let mut adapter = adapter(1);
        break_it(&mut adapter);
        let error = memory.prepare(adapter).err().unwrap();
        assert!(matches!(error, BackendError::Adapter(_)), "{error}");
    }
}

#[test]
fn a_batch_that_breaks_the_rules_is_an_error_and_the_next_one_runs() {
    let break_it: [fn(&mut SequenceStep); 7] = [
        |s| s.input = Input::Tokens(vec![150]),
        |s| s.input = Input::Tokens(Vec::new()),
        |s| s.input = Input::PreviousSample,
        |s| s.blocks = vec![BlockId(8)],
        |s| s.blocks = Vec::new(),
        |s| s.position = u32::MAX,
        |s| {
            s.input = Input::Tokens(vec![1; 65]);
            s.blocks = (0..3).map(BlockId).collect();
        },
    ];
    let mut backend = backend(1 << 20);
    let good = submit(&mut backend, sequence(None)).unwrap();
    for (index, break_it) in break_it.into_iter().enumerate() {
        let mut bad = sequence(None);
        break_it(&mut bad);
        let error = submit(&mut backend, bad).unwrap_err();
        assert!(matches!(error, BackendError::Device(_)), "case {index}: {error}");
        assert_eq!(submit(&mut backend, sequence(None)).unwrap(), good);
    }
}

#[test]
fn steps_are_collected_in_the_order_of_their_submission() {
    let mut backend = backend(1 << 20);
    let first = backend.submit(&StepBatch { step: 1, sequences: vec![sequence(None)] }).unwrap();
    let second = backend.submit(&StepBatch { step: 2, sequences: Vec::new() }).unwrap();
    assert_eq!(backend.collect(first).unwrap().sequences.len(), 1);
    assert_eq!(backend.collect(second).unwrap().sequences.len(), 0);
    assert!(backend.collect(second).is_err());
}

#[test]
fn weights_of_other_shapes_than_their_configuration_are_refused() {
    let mut weights = tiny::model(1, true);
    weights.config.spec.intermediate_size += 2;
    let error = CpuBackend::new(&weights, CpuConfig::default()).err().unwrap();
    assert!(error.to_string().contains("layers.0.mlp.gate_proj"), "{error}");
}

#[test]
fn blocks_are_those_that_the_capacity_says() {
    let driver = Driver::new(backend(5));
    let capacity = driver.backend.capacity();
    assert_eq!(capacity.num_blocks * capacity.block_size, 256);
    assert_eq!((capacity.adapter_bytes, capacity.max_slots, capacity.max_rows), (5, 4, 64));
}
