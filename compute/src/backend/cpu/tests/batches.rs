//! Random batches on tiny models: right by the slow reference, and the same bit for bit however
//! the scheduler cuts and mixes them.

use super::harness::{Driver, Running};
use super::tiny;
use crate::backend::cpu::element::Element;
use crate::backend::cpu::kernel::Isa;
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::{AdapterSlot, HostAdapter, Input, LogitsWanted};
use crate::model::ModelWeights;
use crate::model::reference::{ReferenceAdapter, ReferenceModel};
use crate::sampling::{SamplingParams, log_probs};
use half::bf16;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const ADAPTERS: u64 = 3;

fn driver<T: Element>(weights: &ModelWeights, isa: Isa, threads: usize) -> Driver<CpuBackend<T>> {
    let config = CpuConfig { kv_tokens: 4096, threads, ..CpuConfig::default() };
    let mut driver = Driver::new(CpuBackend::<T>::with_isa(weights, config, isa).unwrap());
    for (index, adapter) in (0..).zip(adapters(weights)) {
        driver.upload(index, adapter);
    }
    driver
}

fn adapters(weights: &ModelWeights) -> impl Iterator<Item = HostAdapter> {
    (0..ADAPTERS).map(|seed| tiny::adapter(seed, &weights.config.spec))
}

/// A prompt and which adapter reads it.
#[derive(Clone)]
pub struct Work {
    pub tokens: Vec<u32>,
    pub adapter: Option<AdapterSlot>,
}

fn random_work(rng: &mut StdRng, count: usize) -> Vec<Work> {
    let mut work = || {
        let length = rng.random_range(1..90);
        let tokens = (0..length).map(|_| rng.random_range(0..150)).collect();
        let index = rng.random_range(0..=ADAPTERS) as u32;
        let slot = AdapterSlot { index, generation: 1 };
        Work { tokens, adapter: (u64::from(index) < ADAPTERS).then_some(slot) }
    };
    (0..count).map(|_| work()).collect()
}

/// All logits of every prompt, fed in random chunks beside random others.
pub fn run_mixed<T: Element>(
    driver: &mut Driver<CpuBackend<T>>,
    rng: &mut StdRng,
    work: &[Work],
) -> Vec<Vec<Vec<f32>>> {
    let mut running: Vec<Running> =
        work.iter().map(|w| driver.start(w.adapter, w.tokens.len())).collect();
    let mut logits = vec![Vec::new(); work.len()];
    loop {
        let mut batch = Vec::new();
        let mut places = Vec::new();
        for (place, (sequence, work)) in running.iter_mut().zip(work).enumerate() {
            let left = work.tokens.len() - sequence.position;
            if left == 0 || rng.random_bool(0.3) {
                continue;
            }
            let count = rng.random_range(1..=left.min(33));
            let tokens = work.tokens[sequence.position..][..count].to_vec();
            sequence.logits = LogitsWanted::All;
            batch.push((place, (sequence, Input::Tokens(tokens))));
        }
        batch.shuffle(rng);
        let mut batch: Vec<_> = batch
            .into_iter()
            .map(|(place, item)| {
                places.push(place);
                item
            })
            .collect();
        for (place, output) in places.into_iter().zip(driver.step(&mut batch)) {
            logits[place].extend(output.logits);
        }
        if logits.iter().zip(work).all(|(l, w)| l.len() == w.tokens.len()) {
            return logits;
        }
    }
}

#[test]
fn mixed_batches_match_the_slow_reference_for_every_instruction_set() {
    for (seed, isa) in (0..).zip(Isa::available()) {
        for tied in [false, true] {
            let weights = tiny::model(seed, tied);
            let reference = ReferenceModel::new(&weights).unwrap();
            let adapters: Vec<ReferenceAdapter> = adapters(&weights)
                .map(|a| ReferenceAdapter::from_artifact(&a.header, a.file().unwrap()).unwrap())
                .collect();
            let mut rng = StdRng::seed_from_u64(seed);
            let work = random_work(&mut rng, 12);
            let exact = run_mixed(&mut driver::<f32>(&weights, isa, 2), &mut rng, &work);
            let served = run_mixed(&mut driver::<bf16>(&weights, isa, 2), &mut rng, &work);
            for ((work, exact), served) in work.iter().zip(exact).zip(served) {
                let adapter = work.adapter.map(|slot| &adapters[slot.index as usize]);
                let want = reference.forward(&work.tokens, adapter).unwrap();
                assert!(distance(&exact, &want) < 2e-4, "{isa:?}: {}", distance(&exact, &want));
                assert!(distance(&served, &want) < 0.15, "{isa:?}: {}", distance(&served, &want));
            }
        }
    }
}

fn distance(got: &[Vec<f32>], want: &[Vec<f32>]) -> f32 {
    let pairs = got.iter().flatten().zip(want.iter().flatten());
    pairs.map(|(g, w)| (g - w).abs()).fold(0.0, |worst, d| if d > worst { d } else { worst })
}

#[test]
fn a_sequence_is_the_same_bit_for_bit_however_it_is_cut_and_whatever_is_beside_it() {
    let weights = tiny::model(7, true);
    for isa in Isa::available() {
        let mut alone = driver::<bf16>(&weights, isa, 1);
        for seed in 0..6 {
            let mut rng = StdRng::seed_from_u64(seed);
            let work = random_work(&mut rng, 9);
            let mut mixed = driver::<bf16>(&weights, isa, 1 + seed as usize % 3);
            let mixed = run_mixed(&mut mixed, &mut rng, &work);
            for (work, mixed) in work.iter().zip(mixed) {
                alone.reuse_blocks();
                let mut sequence = alone.start(work.adapter, work.tokens.len());
                sequence.logits = LogitsWanted::All;
                let input = Input::Tokens(work.tokens.clone());
                let output = alone.step(&mut [(&mut sequence, input)]);
                assert!(output[0].logits == mixed, "{isa:?} seed {seed}");
            }
        }
    }
}

#[test]
fn a_seeded_answer_is_the_same_beside_others() {
    let weights = tiny::model(8, true);
    let mut driver = driver::<bf16>(&weights, Isa::detect(), 2);
    let mut answer = |others: usize| {
        driver.reuse_blocks();
        let mut running: Vec<Running> = (0..=others).map(|_| driver.start(None, 60)).collect();
        running[0].params = SamplingParams { seed: 11, ..SamplingParams::default() };
        let mut inputs = vec![Input::Tokens(vec![5, 6, 7]); others + 1];
        let mut tokens = Vec::new();
        for _ in 0..40 {
            let mut batch: Vec<_> = running.iter_mut().zip(inputs).collect();
            let outputs = driver.step(&mut batch);
            tokens.push(outputs[0].sampled.as_ref().unwrap().token);
            inputs = vec![Input::PreviousSample; others + 1];
        }
        tokens
    };
    let alone = answer(0);
    assert_eq!(alone, answer(6));
    assert!(alone.iter().any(|t| t != &alone[0]), "a draw that never varies proves nothing");
}

#[test]
fn given_tokens_are_scored_as_their_logits_say_wherever_they_are_cut() {
    let weights = tiny::model(3, true);
    let vocabulary = weights.config.spec.vocab_size;
    let tokens: Vec<u32> = (0..40).map(|i| (i * i + 3) % vocabulary).collect();
    let mut driver = driver::<bf16>(&weights, Isa::detect(), 2);
    let mut sequence = driver.start(None, 48);
    sequence.logits = LogitsWanted::All;
    let all = Input::Tokens(tokens.clone());
    let logits = driver.step(&mut [(&mut sequence, all)]).remove(0).logits;
    for cut in [1, 17, 39, 40] {
        let mut sequence = driver.start(None, 48);
        let mut scores = Vec::new();
        for (part, next) in [(&tokens[..cut], tokens.get(cut)), (&tokens[cut..], None)] {
            if part.is_empty() {
                continue;
            }
            sequence.logits = LogitsWanted::Scores { top: 2, next: next.copied() };
            let output =
                driver.step(&mut [(&mut sequence, Input::Tokens(part.to_vec()))]).remove(0);
            assert!(output.logits.is_empty() && output.sampled.is_some());
            scores.extend(output.scores);
        }
        assert_eq!(scores.len(), tokens.len() - 1);
        for ((score, token), logits) in scores.iter().zip(&tokens[1..]).zip(&logits) {
            let (logprob, top) = log_probs(logits, *token, 2);
            assert_eq!((score.token, &score.top_logprobs), (*token, &top));
            assert_eq!(score.logprob, Some(logprob));
        }
    }
}

#[test]
fn what_a_broken_sequence_leaves_in_its_blocks_reaches_nobody() {
    let weights = tiny::model(9, true);
    let spec = &weights.config.spec;
    let mut driver = driver::<bf16>(&weights, Isa::detect(), 2);
    let mut broken = tiny::adapter(5, spec);
    broken.header.modules.iter_mut().for_each(|m| m.scale = f32::MAX);
    let broken = driver.upload(10, broken);
    for length in 1..40 {
        let tokens: Vec<u32> = (0..length).map(|i| i * 3 + 1).collect();
        let mut answer = |adapter, input: &[u32]| {
            driver.reuse_blocks();
            let mut sequence = driver.start(adapter, 80);
            sequence.logits = LogitsWanted::Last;
            let input = Input::Tokens(input.to_vec());
            driver.step(&mut [(&mut sequence, input)]).remove(0).logits.remove(0)
        };
        let before = answer(None, &tokens);
        let poison = answer(Some(broken), &[1; 64]);
        assert!(poison.iter().all(|l| l.is_nan()), "the planted overflow did not happen");
        assert!(answer(None, &tokens) == before, "length {length}");
        assert!(before.iter().all(|l| l.is_finite()));
    }
}

#[test]
fn the_threads_of_a_dropped_backend_end() {
    // No other test has so many, so their names tell them apart.
    let last = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let mut names =
            tasks.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("comm")).ok());
        names.any(|name| name.trim() == "lk-cpu-39")
    };
    let driver = driver::<bf16>(&tiny::model(1, true), Isa::detect(), 40);
    // A thread names itself once it runs.
    while !last() {
        std::thread::yield_now();
    }
    drop(driver);
    assert!(!last());
}
