//! Operations on one row. Called inside [`super::kernel::Isa::run`], which compiles them for the
//! processor: loops are written so that they vectorise, and always sum in the same order.

use super::element::Element;
use crate::exp::exp;

/// Independent partial sums: one per vector lane, so that a sum vectorises in a fixed order.
const LANES: usize = 16;

/// `out = x / rms(x) * weight`
#[inline(always)]
pub fn rms_norm<T: Element>(x: &[f32], weight: &[f32], eps: f32, out: &mut [T]) {
    let scale = inverse_rms(x, eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = T::from_f32(x * scale * w);
    }
}

/// `x = x / rms(x) * weight`
#[inline(always)]
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(x, eps);
    for (x, w) in x.iter_mut().zip(weight) {
        *x *= scale * w;
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean_square = sum_of(x, |v| v * v) / x.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}

/// `out = silu(gate) * up`
#[inline(always)]
pub fn silu_mul<T: Element>(gate: &[f32], up: &[f32], out: &mut [T]) {
    for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = T::from_f32(gate / (1.0 + exp(-gate)) * up);
    }
}

/// Rotates the pairs `(i, i + half)` of one head and multiplies by `scale`.
#[inline(always)]
pub fn rope(head: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (a, b) = (*low, *high);
        *low = (a * cos - b * sin) * scale;
        *high = (b * cos + a * sin) * scale;
    }
}

/// `out = exp(scores - max)`; returns the sum of it. `scores` is not empty.
#[inline(always)]
pub fn exp_weights<T: Element>(scores: &mut [f32], out: &mut [T]) -> f32 {
    let max = max_of(scores);
    for (score, out) in scores.iter_mut().zip(out) {
        *score = exp(*score - max);
        *out = T::from_f32(*score);
    }
    sum_of(scores, |v| v)
}

#[inline(always)]
pub fn add(sum: &mut [f32], x: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += x;
    }
}

#[inline(always)]
pub fn mul(product: &mut [f32], x: &[f32]) {
    for (product, x) in product.iter_mut().zip(x) {
        *product *= x;
    }
}

#[inline(always)]
pub fn scaled<T: Element>(x: &[f32], scale: f32, out: &mut [T]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = T::from_f32(x * scale);
    }
}

#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += f(v);
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn max_of(x: &[f32]) -> f32 {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (max, &v) in maxima.iter_mut().zip(chunk) {
            *max = if v > *max { v } else { *max };
        }
    }
    maxima.into_iter().fold(rest, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan());
        }
    }

    #[test]
    fn weights_are_a_softmax_once_divided_by_their_sum() {
        let mut scores: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
        let exact: Vec<f64> = scores.iter().map(|&s| f64::from(s).exp()).collect();
        let total: f64 = exact.iter().sum();
        let mut out = vec![0f32; scores.len()];
        let sum = exp_weights(&mut scores, &mut out);
        for (got, want) in out.iter().zip(exact) {
            assert!((f64::from(got / sum) - want / total).abs() < 1e-6);
        }
    }
}
