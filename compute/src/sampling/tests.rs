use super::*;
use proptest::prelude::*;

fn logits() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-20f32..20.0, 1..300)
}

fn params() -> impl Strategy<Value = SamplingParams> {
    (0.1f32..2.0, 0.05f32..1.0, 0u32..20, 0f32..0.5, any::<u64>()).prop_map(
        |(temperature, top_p, top_k, min_p, seed)| SamplingParams {
            temperature,
            top_p,
            top_k,
            min_p,
            seed,
        },
    )
}

fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|l| (f64::from(l - max) / f64::from(temperature)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

proptest! {
    #[test]
    fn a_drawn_token_is_one_that_every_filter_keeps(
        logits in logits(), params in params(), index in 0u32..1000
    ) {
        let token = Sampler::default().draw(&logits, &params, index) as usize;
        let p = probabilities(&logits, params.temperature);
        let likelier = |&i: &usize| p[i] > p[token] * (1.0 + 1e-5);
        let before: Vec<usize> = (0..p.len()).filter(likelier).collect();
        if params.top_k > 0 {
            prop_assert!(before.len() < params.top_k as usize);
        }
        prop_assert!(before.iter().map(|&i| p[i]).sum::<f64>() < f64::from(params.top_p) + 1e-4);
        let best = p.iter().copied().fold(0.0, f64::max);
        prop_assert!(p[token] >= best * f64::from(params.min_p) * 0.999);
    }

    #[test]
    fn the_same_seed_and_index_give_the_same_token(
        logits in logits(), other in logits(), params in params(), index in 0u32..1000
    ) {
        let fresh = Sampler::default().draw(&logits, &params, index);
        let mut used = Sampler::default();
        used.draw(&other, &params, index);
        prop_assert_eq!(used.draw(&logits, &params, index), fresh);
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_largest(logits in prop::collection::vec(-3i8..3, 1..50)) {
        let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
        let token = greedy(&logits) as usize;
        prop_assert!(logits.iter().all(|&l| l <= logits[token]));
        prop_assert!(logits[..token].iter().all(|&l| l < logits[token]));
    }

    #[test]
    fn log_probs_are_those_of_a_softmax(logits in logits(), top in 0u8..20) {
        let (chosen, best) = log_probs(&logits, 0, top);
        let p = probabilities(&logits, 1.0);
        prop_assert!((f64::from(chosen) - p[0].ln()).abs() < 1e-4);
        prop_assert_eq!(best.len(), usize::from(top).min(logits.len()));
        let mut sorted: Vec<f64> = p.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for ((id, logprob), expected) in best.into_iter().zip(sorted) {
            prop_assert!((p[id as usize].ln() - expected.ln()).abs() < 1e-4);
            prop_assert!((f64::from(logprob) - expected.ln()).abs() < 1e-4);
        }
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0, 1.0, 2.0, -1.0];
    let params = SamplingParams { temperature: 0.7, seed: 7, ..Default::default() };
    let mut sampler = Sampler::default();
    let mut counts = [0u32; 4];
    let draws = 20_000;
    for index in 0..draws {
        counts[sampler.draw(&logits, &params, index) as usize] += 1;
    }
    for (count, p) in counts.iter().zip(probabilities(&logits, 0.7)) {
        let share = f64::from(*count) / f64::from(draws);
        assert!((share - p).abs() < 0.015, "share {share}, probability {p}");
    }
}

#[test]
fn edits_move_the_draw_and_leave_the_logits_as_they_are() {
    let (logits, mut sampler) = ([1.0, 2.0, 3.0], Sampler::default());
    let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
    let ban = |token| LogitEdit { token, divisor: 1.0, add: f32::NEG_INFINITY };
    assert_eq!(sampler.draw_edited(&logits, &[], None, &greedy, 0), 2);
    assert_eq!(sampler.draw_edited(&logits, &[ban(2), ban(9)], None, &greedy, 0), 1);
    let any = SamplingParams::default();
    let only = [ban(0), ban(2)];
    assert!((0..50).all(|index| sampler.draw_edited(&logits, &only, None, &any, index) == 1));
    let halved = [LogitEdit { token: 2, divisor: 2.0, add: 0.0 }];
    assert_eq!(sampler.draw_edited(&logits, &halved, None, &greedy, 0), 1);
    let first = TokenMask::new([0b1]);
    assert_eq!(sampler.draw_edited(&logits, &halved, Some(&first), &greedy, 0), 0);
    assert!((0..50).all(|i| sampler.draw_edited(&logits, &[], Some(&first), &any, i) == 0));
}

#[test]
fn every_token_of_a_large_vocabulary_can_be_drawn() {
    let logits = vec![0.0; 1000];
    let params = SamplingParams { seed: 5, ..Default::default() };
    let mut sampler = Sampler::default();
    let mut seen = vec![false; 1000];
    (0..20_000).for_each(|i| seen[sampler.draw(&logits, &params, i) as usize] = true);
    assert!(seen.iter().all(|&seen| seen));
}

#[test]
fn a_nucleus_larger_than_the_first_sort_is_found() {
    let logits = vec![0.0; 2000];
    let params = SamplingParams { top_p: 0.5, seed: 3, ..Default::default() };
    let mut sampler = Sampler::default();
    let drawn: Vec<u32> = (0..500).map(|i| sampler.draw(&logits, &params, i)).collect();
    assert!(drawn.iter().all(|&t| t < 1001));
    assert!(drawn.iter().any(|&t| t > 900));
}

#[test]
fn nan_and_infinite_logits_draw_a_valid_token() {
    let params = SamplingParams::default();
    let mut sampler = Sampler::default();
    assert_eq!(sampler.draw(&[f32::NAN, 1.0, f32::NAN], &params, 0), 1);
    assert_eq!(sampler.draw(&[f32::NAN; 3], &params, 0), 0);
    assert_eq!(sampler.draw(&[0.0, f32::INFINITY, 0.0], &params, 0), 1);
    assert_eq!(greedy(&[f32::NAN, 1.0, 2.0]), 2);
}
