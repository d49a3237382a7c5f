//! Looks for values that are not finite: all bits of the exponent are set.

use super::artifact::Dtype;

/// Index and name of the first element that is not finite. `bytes` holds whole elements.
pub(super) fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, &'static str)> {
    match dtype {
        Dtype::F32 => find32(bytes, 0x7f80_0000),
        Dtype::F16 => find16(bytes, 0x7c00),
        Dtype::BF16 => find16(bytes, 0x7f80),
    }
}

fn find32(bytes: &[u8], exponent: u32) -> Option<(usize, &'static str)> {
    let (elements, _) = bytes.as_chunks::<4>();
    let mut bits = elements.iter().map(|e| u32::from_le_bytes(*e)).enumerate();
    bits.find(|(_, b)| b & exponent == exponent)
        .map(|(i, b)| (i, name(b & !(exponent | 0x8000_0000) != 0, b >> 31 != 0)))
}

fn find16(bytes: &[u8], exponent: u16) -> Option<(usize, &'static str)> {
    let (elements, _) = bytes.as_chunks::<2>();
    let mut bits = elements.iter().map(|e| u16::from_le_bytes(*e)).enumerate();
    bits.find(|(_, b)| b & exponent == exponent)
        .map(|(i, b)| (i, name(b & !(exponent | 0x8000) != 0, b >> 15 != 0)))
}

fn name(has_fraction: bool, is_negative: bool) -> &'static str {
    match (has_fraction, is_negative) {
        (true, _) => "NaN",
        (false, false) => "+Inf",
        (false, true) => "-Inf",
    }
}
