//! Drawing a token from logits. Pure: the same logits, parameters, seed and index give the same
//! token, whatever else runs.

mod edits;
mod mask;
mod random;

pub use edits::{LogitEdit, LogitEditor, LogitRules};
pub use mask::TokenMask;

use crate::exp::exp;
use random::uniform;

/// Weights that are summed apart: the draw skips whole chunks.
const CHUNK: usize = 64;
/// Independent partial sums, so that a sum vectorises in a fixed order.
const LANES: usize = 16;

/// How tokens are drawn. Defaults are OpenAI's.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0: greedy, ties to the lowest id.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probabilities sum to at least this.
    pub top_p: f32,
    /// Keep at most this many; 0: all.
    pub top_k: u32,
    /// Keep tokens of at least this share of the likeliest one's probability.
    pub min_p: f32,
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 }
    }
}

impl SamplingParams {
    fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }

    fn keeps_all(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0
    }
}

/// Draws tokens. Holds only scratch memory, so that drawing does not allocate.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Logit and id of the tokens that may still be drawn.
    candidates: Vec<(f32, u32)>,
    weights: Vec<f32>,
    chunk_sums: Vec<f64>,
    edited: Vec<f32>,
}

impl Sampler {
    /// As [`Sampler::draw`], from the logits as `edits` change them and of the `allowed` tokens only.
    /// Edits of tokens that the vocabulary does not have are left out.
    pub fn draw_edited(
        &mut self,
        logits: &[f32],
        edits: &[LogitEdit],
        allowed: Option<&TokenMask>,
        params: &SamplingParams,
        output_index: u32,
    ) -> u32 {
        if edits.is_empty() && allowed.is_none() {
            return self.draw(logits, params, output_index);
        }
        let mut edited = std::mem::take(&mut self.edited);
        edited.clear();
        edited.extend_from_slice(logits);
        for edit in edits {
            if let Some(logit) = edited.get_mut(edit.token as usize) {
                *logit = edit.apply(*logit);
            }
        }
        if let Some(allowed) = allowed {
            allowed.apply(&mut edited);
        }
        let token = self.draw(&edited, params, output_index);
        self.edited = edited;
        token
    }

    /// The next token. `output_index` counts the tokens drawn before for this sequence; with the
    /// seed it fixes the draw. A NaN is never drawn while another logit is finite; of logits that
    /// are all NaN the draw is token 0.
    pub fn draw(&mut self, logits: &[f32], params: &SamplingParams, output_index: u32) -> u32 {
        if params.is_greedy() {
            return greedy(logits);
        }
        let draw = uniform(params.seed, output_index);
        if params.keeps_all() {
            return self.draw_from_all(logits, params.temperature, draw);
        }
        self.candidates.clear();
        self.candidates.extend(
            (0u32..).zip(logits).filter(|(_, l)| !l.is_nan()).map(|(id, &logit)| (logit, id)),
        );
        self.keep_likely(params);
        let Some(max) = max_logit(&self.candidates) else { return 0 };
        let left = draw * total(&self.candidates, max, params.temperature);
        let weights =
            self.candidates.iter().map(|&(l, id)| (id, weight(l, max, params.temperature)));
        pick(weights, left)
    }

    /// [`pick`] among all tokens in the order of their ids, a chunk at a time.
    fn draw_from_all(&mut self, logits: &[f32], temperature: f32, draw: f64) -> u32 {
        let max = max_of(logits);
        self.weights.clear();
        self.weights.extend(logits.iter().map(|&l| weight(l, max, temperature)));
        self.chunk_sums.clear();
        self.chunk_sums.extend(self.weights.chunks(CHUNK).map(|c| sum_of(c, |w| w)));
        let mut left = draw * self.chunk_sums.iter().sum::<f64>();
        let mut chosen = None;
        for (index, &sum) in self.chunk_sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
            chosen = Some(index * CHUNK);
            if left < sum {
                break;
            }
            left -= sum;
        }
        let Some(start) = chosen else { return 0 };
        let chunk = self.weights[start..].iter().take(CHUNK);
        pick((start as u32..).zip(chunk.copied()), left)
    }

    /// Applies top-k, then top-p of what is left, then min-p.
    fn keep_likely(&mut self, params: &SamplingParams) {
        let top_k = params.top_k as usize;
        if top_k > 0 {
            self.sort_first(top_k);
            self.candidates.truncate(top_k);
        }
        if params.top_p < 1.0 {
            self.keep_nucleus(params.temperature, params.top_p);
        }
        if params.min_p > 0.0 {
            let Some(max) = max_logit(&self.candidates) else { return };
            let least = max + params.temperature * params.min_p.ln();
            self.candidates.retain(|c| c.0 >= least);
        }
    }

    /// Keeps the shortest prefix, likeliest first, whose probabilities reach `top_p`.
    fn keep_nucleus(&mut self, temperature: f32, top_p: f32) {
        let Some(max) = max_logit(&self.candidates) else { return };
        let wanted = f64::from(top_p) * total(&self.candidates, max, temperature);
        // Nearly always a few tokens suffice: the whole vocabulary is sorted only when they don't.
        let mut sorted = 0;
        while sorted < self.candidates.len() {
            sorted = (sorted * 16).max(64).min(self.candidates.len());
            self.sort_first(sorted);
            let mut sum = 0.0;
            for (index, candidate) in self.candidates[..sorted].iter().enumerate() {
                sum += f64::from(weight(candidate.0, max, temperature));
                if sum >= wanted {
                    self.candidates.truncate(index + 1);
                    return;
                }
            }
        }
    }

    /// Brings the `count` likeliest candidates to the front, in order; ties by lower id.
    fn sort_first(&mut self, count: usize) {
        if count < self.candidates.len() {
            self.candidates.select_nth_unstable_by(count, likelier);
        }
        let count = count.min(self.candidates.len());
        self.candidates[..count].sort_unstable_by(likelier);
    }
}

/// The likeliest token, ties to the lowest id; NaN never wins.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, &logit) in (0u32..).zip(logits) {
        if logit > best.0 {
            best = (logit, id);
        }
    }
    best.1
}

/// Natural log of the probability of `token` at temperature 1, and of the `top` likeliest tokens,
/// likeliest first.
pub fn log_probs(logits: &[f32], token: u32, top: u8) -> (f32, Vec<(u32, f32)>) {
    let norm = log_sum_exp(logits);
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(usize::from(top) + 1);
    for candidate in (0u32..).zip(logits).map(|(id, &logit)| (logit, id)) {
        if best.len() == usize::from(top) && best.last().is_none_or(|b| candidate.0 <= b.0) {
            continue;
        }
        let place = best.partition_point(|b| likelier(b, &candidate).is_lt());
        best.insert(place, candidate);
        best.truncate(usize::from(top));
    }
    let relative = |logit: f32| (f64::from(logit) - norm) as f32;
    let chosen = logits.get(token as usize).map_or(f32::NEG_INFINITY, |&l| relative(l));
    (chosen, best.into_iter().map(|(logit, id)| (id, relative(logit))).collect())
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = max_of(logits);
    let sum: f64 = logits.chunks(CHUNK).map(|c| sum_of(c, |l| weight(l, max, 1.0))).sum();
    f64::from(max) + sum.ln()
}

fn likelier(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

fn max_logit(candidates: &[(f32, u32)]) -> Option<f32> {
    candidates.iter().map(|c| c.0).reduce(f32::max)
}

/// Probability relative to the likeliest token's. Infinite logits share the whole of it; NaN has none.
#[inline(always)]
fn weight(logit: f32, max: f32, temperature: f32) -> f32 {
    let weight = exp((logit - max) / temperature);
    if logit == max {
        1.0
    } else if weight > 0.0 {
        weight
    } else {
        0.0
    }
}

fn total(candidates: &[(f32, u32)], max: f32, temperature: f32) -> f64 {
    candidates.iter().map(|c| f64::from(weight(c.0, max, temperature))).sum()
}

/// The token at which the running sum of the weights exceeds `left`; the last possible one when
/// rounding leaves it short.
fn pick(weights: impl Iterator<Item = (u32, f32)>, mut left: f64) -> u32 {
    let mut last = 0;
    for (id, weight) in weights.filter(|(_, weight)| *weight > 0.0) {
        last = id;
        if left < f64::from(weight) {
            break;
        }
        left -= f64::from(weight);
    }
    last
}

/// Ignores NaN.
fn max_of(values: &[f32]) -> f32 {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in values.chunks(LANES) {
        for (max, &value) in maxima.iter_mut().zip(chunk) {
            *max = if value > *max { value } else { *max };
        }
    }
    maxima.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0f32; LANES];
    for chunk in values.chunks(LANES) {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f(value);
        }
    }
    sums.into_iter().map(f64::from).sum()
}

#[cfg(test)]
mod tests;
