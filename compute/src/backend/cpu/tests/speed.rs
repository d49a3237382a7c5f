//! Sixteen mixed sequences against one.

use super::harness::{Driver, Running, kit_adapter};
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::{AdapterSlot, Input};
use crate::model::fixture::base_model;
use std::time::{Duration, Instant};

const PROMPT: usize = 64;

fn driver() -> (Driver<CpuBackend>, Vec<AdapterSlot>) {
    let weights = &base_model().weights;
    let config = CpuConfig { kv_tokens: 16 * 1024, ..CpuConfig::default() };
    let mut driver = Driver::new(CpuBackend::new(weights, config).unwrap());
    let required = lorikeet_kit::index().adapters.into_iter().filter(|a| a.required);
    let at_hand = required.filter(|a| {
        lorikeet_kit::adapter_dir(&a.adapter).join("adapter_model.safetensors").is_file()
    });
    let slots = (0..)
        .zip(at_hand)
        .map(|(i, a)| driver.upload(i, kit_adapter(&a.adapter, &weights.config.spec)))
        .collect();
    (driver, slots)
}

/// The quickest of `steps` decode steps of `count` sequences; sequence i has the i-th adapter.
fn decode(
    driver: &mut Driver<CpuBackend>,
    slots: &[Option<AdapterSlot>],
    count: usize,
    steps: usize,
) -> Duration {
    driver.reuse_blocks();
    let mut running: Vec<Running> =
        (0..count).map(|i| driver.start(slots[i % slots.len()], PROMPT + steps + 1)).collect();
    for sequence in &mut running {
        let prompt = (0..PROMPT as u32).map(|i| 100 + i * 37).collect();
        driver.step(&mut [(sequence, Input::Tokens(prompt))]);
    }
    let mut best = Duration::MAX;
    for _ in 0..steps {
        let mut batch: Vec<(&mut Running, Input)> =
            running.iter_mut().map(|s| (s, Input::Tokens(vec![42]))).collect();
        let started = Instant::now();
        driver.step(&mut batch);
        best = best.min(started.elapsed());
    }
    best
}

#[test]
fn sixteen_mixed_sequences_reach_two_and_a_half_times_the_throughput_of_one() {
    let (mut driver, slots) = driver();
    let adapters: Vec<_> = slots.into_iter().map(Some).chain([None]).collect();
    let mut ratio = 0f64;
    for _ in 0..5 {
        let one = decode(&mut driver, &adapters, 1, 10).as_secs_f64();
        let sixteen = decode(&mut driver, &adapters, 16, 10).as_secs_f64();
        ratio = ratio.max(16.0 * one / sixteen);
        if ratio >= 2.5 {
            return;
        }
    }
    panic!("sixteen sequences give {ratio:.2} times the tokens per second of one");
}
