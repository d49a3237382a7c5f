//! Keys and values as they lie in a block of one layer, in bf16 or e4m3.

use super::lab::{Lab, to_f32};
use crate::backend::cuda::Precision;
use half::{bf16, f16};

/// Tokens of a block.
const TOKENS: usize = 16;

fn is_fp8(lab: &Lab) -> bool {
    lab.kernels.target().kv_precision == Precision::Fp8
}

fn sizes(lab: &Lab) -> (usize, usize) {
    (lab.spec.num_kv_heads as usize, lab.spec.head_dim as usize)
}

/// Bytes of the keys, or the values, of a block.
fn half_bytes(lab: &Lab) -> usize {
    let (heads, dim) = sizes(lab);
    heads * TOKENS * if is_fp8(lab) { dim + 1 } else { 2 * dim }
}

/// Bytes of a block.
pub fn block_bytes(lab: &Lab) -> usize {
    2 * half_bytes(lab)
}

/// What the attention takes as queries: f16 where keys are e4m3.
pub fn queries_to_f32(lab: &Lab, queries: &[bf16]) -> Vec<f32> {
    match is_fp8(lab) {
        true => queries.iter().map(|q| f16::from_bits(q.to_bits()).to_f32()).collect(),
        false => to_f32(queries),
    }
}

/// The bits of a query, as [`queries_to_f32`] reads them.
pub fn query_bits(lab: &Lab, query: f32) -> u16 {
    match is_fp8(lab) {
        true => f16::from_f32(query).to_bits(),
        false => bf16::from_f32(query).to_bits(),
    }
}

/// A head of a token.
pub fn key(lab: &Lab, block: &[u8], head: usize, token: usize) -> Vec<f32> {
    let dim = sizes(lab).1;
    let places = (0..dim).map(|d| (head * TOKENS + token) * dim + d);
    read(lab, &block[..half_bytes(lab)], head, token, places)
}

/// As [`key`].
pub fn value(lab: &Lab, block: &[u8], head: usize, token: usize) -> Vec<f32> {
    let dim = sizes(lab).1;
    let places = (0..dim).map(|d| (head * dim + d) * TOKENS + token);
    read(lab, &block[half_bytes(lab)..], head, token, places)
}

fn read(
    lab: &Lab,
    half: &[u8],
    head: usize,
    token: usize,
    places: impl Iterator<Item = usize>,
) -> Vec<f32> {
    let (heads, dim) = sizes(lab);
    if !is_fp8(lab) {
        let bits = |place: usize| u16::from_le_bytes([half[2 * place], half[2 * place + 1]]);
        return places.map(|place| bf16::from_bits(bits(place)).to_f32()).collect();
    }
    let scale = half[heads * TOKENS * dim + head * TOKENS + token];
    let scale = f32::from(scale) - 15.0;
    places.map(|place| e4m3_to_f32(half[place]) * scale.exp2()).collect()
}

/// Writes a head of a token's key and value, which may be rounded for it: gives what is there then.
pub fn write(
    lab: &Lab,
    block: &mut [u8],
    (head, token): (usize, usize),
    key_and_value: [&[f32]; 2],
) -> [Vec<f32>; 2] {
    let (heads, dim) = sizes(lab);
    let half = half_bytes(lab);
    for (which, values) in key_and_value.into_iter().enumerate() {
        let half = &mut block[which * half..][..half];
        let place = |d: usize| match which {
            0 => (head * TOKENS + token) * dim + d,
            _ => (head * dim + d) * TOKENS + token,
        };
        if !is_fp8(lab) {
            for (d, v) in values.iter().enumerate() {
                let bits = bf16::from_f32(*v).to_bits().to_le_bytes();
                half[2 * place(d)..][..2].copy_from_slice(&bits);
            }
            continue;
        }
        let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
        let exponent = (most.log2().floor() as i32 - 7).clamp(-14, 15);
        half[heads * TOKENS * dim + head * TOKENS + token] = (exponent + 15) as u8;
        for (d, v) in values.iter().enumerate() {
            half[place(d)] = f32_to_e4m3(v / (exponent as f32).exp2());
        }
    }
    [self::key(lab, block, head, token), self::value(lab, block, head, token)]
}

/// Of NaN too: what lies behind a sequence's last token.
pub fn unwritten(lab: &Lab, blocks: usize) -> Vec<u8> {
    vec![0xff; blocks * block_bytes(lab)]
}

fn e4m3_to_f32(bits: u8) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    match exponent {
        15 if bits & 7 == 7 => f32::NAN,
        0 => sign * mantissa * (-9f32).exp2(),
        _ => sign * (8.0 + mantissa) * ((exponent - 10) as f32).exp2(),
    }
}

/// The nearest.
fn f32_to_e4m3(v: f32) -> u8 {
    let (sign, size) = (u8::from(v.is_sign_negative()) << 7, v.abs());
    // Steps of the smallest numbers, or of the binade: eight in each.
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (size / ((exponent - 3) as f32).exp2()).round_ties_even() as i32;
    sign | ((exponent + 6) * 8 + steps).min(0x7e) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_e4m3_has_the_values_of_its_definition() {
        assert_eq!(f32_to_e4m3(1000.0), 0x7e);
        assert_eq!(f32_to_e4m3(15.9), f32_to_e4m3(16.0));
        assert_eq!(f32_to_e4m3(-0.0001), 0x80);
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(e4m3_to_f32(0x38), 1.0);
        assert_eq!(e4m3_to_f32(0x01), 1.0 / 512.0);
        assert_eq!(e4m3_to_f32(0x81), -1.0 / 512.0);
        for bits in (0..=u8::MAX).filter(|bits| bits & 0x7f != 0x7f && *bits != 0x80) {
            assert_eq!(f32_to_e4m3(e4m3_to_f32(bits)), bits);
        }
    }
}
