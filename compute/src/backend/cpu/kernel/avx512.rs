//! bf16 dot products with `vdpbf16ps`: two products and their sum per lane and instruction.
#![cfg(target_arch = "x86_64")]

use super::{TILE_ROWS, Tile, Write};
use half::bf16;
use std::arch::x86_64::{
    __m512, __m512bh, __mmask16, _MM_HINT_T0, _mm_load_ss, _mm_prefetch, _mm512_broadcastss_ps,
    _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi32,
    _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
};

const LANES: usize = 16;

/// # Safety
/// The tile's pointers are valid as [`Tile`] says; the processor has AVX-512 with bf16.
pub unsafe fn multiply(tile: &Tile<bf16>) {
    // SAFETY: forwarded from the caller; `rows` and `width` select the shape they describe.
    unsafe {
        match (tile.rows, tile.width > LANES) {
            (1, true) => rows::<1, 2>(tile),
            (2, true) => rows::<2, 2>(tile),
            (3, true) => rows::<3, 2>(tile),
            (4, true) => rows::<4, 2>(tile),
            (5, true) => rows::<5, 2>(tile),
            (6, true) => rows::<6, 2>(tile),
            (7, true) => rows::<7, 2>(tile),
            (TILE_ROWS, true) => rows::<TILE_ROWS, 2>(tile),
            (1, false) => rows::<1, 1>(tile),
            (2, false) => rows::<2, 1>(tile),
            (3, false) => rows::<3, 1>(tile),
            (4, false) => rows::<4, 1>(tile),
            (5, false) => rows::<5, 1>(tile),
            (6, false) => rows::<6, 1>(tile),
            (7, false) => rows::<7, 1>(tile),
            (TILE_ROWS, false) => rows::<TILE_ROWS, 1>(tile),
            (rows, _) => unreachable!("a tile has 1 to {TILE_ROWS} rows, not {rows}"),
        }
    }
}

/// `R` rows, `V` vectors of columns. Loads are masked to the panel's width: narrow panels are
/// stored at their true size.
///
/// Pointers move by `wrapping_add`, and one `_mm_load_ss` loads a pair: neither is checked in a
/// build with debug assertions, where checks would triple the loop's instructions.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const R: usize, const V: usize>(tile: &Tile<bf16>) {
    let groups = tile.depth / 2;
    let masks: [__mmask16; V] =
        std::array::from_fn(|v| mask(tile.width.saturating_sub(v * LANES).min(LANES)));
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let pairs: [*const f32; R] =
        std::array::from_fn(|r| tile.x.wrapping_add(r * tile.x_stride).cast());
    let mut w = tile.w.cast::<i32>();
    let mut ahead = tile.ahead.cast::<i8>();
    let ahead_step = tile.ahead_bytes.div_ceil(groups.max(1));
    for group in 0..groups {
        // SAFETY: the masks end at the panel's width, `group` before its depth; rows of `x` hold
        // `depth` elements at addresses aligned for pairs; a prefetch never faults.
        unsafe {
            let columns: [__m512bh; V] = std::array::from_fn(|v| {
                std::mem::transmute(_mm512_maskz_loadu_epi32(masks[v], w.wrapping_add(v * LANES)))
            });
            _mm_prefetch::<_MM_HINT_T0>(ahead);
            for (pairs, sums) in pairs.iter().zip(&mut sums) {
                let pair = _mm512_broadcastss_ps(_mm_load_ss(pairs.wrapping_add(group)));
                let pair: __m512bh = std::mem::transmute(pair);
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, pair, column);
                }
            }
        }
        w = w.wrapping_add(tile.width);
        ahead = ahead.wrapping_add(ahead_step);
    }
    for (r, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            let out = tile.out.wrapping_add(r * tile.out_stride + v * LANES);
            // SAFETY: `out` holds `rows` rows of `width` sums, where the mask ends.
            unsafe { write(out, masks[v], sum, tile.write) };
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn write(out: *mut f32, mask: __mmask16, sum: __m512, write: Write) {
    let value = match write {
        Write::Store => sum,
        Write::Add(factor) => {
            // SAFETY: forwarded from the caller.
            let before = unsafe { _mm512_maskz_loadu_ps(mask, out) };
            _mm512_fmadd_ps(_mm512_set1_ps(factor), sum, before)
        }
    };
    // SAFETY: forwarded from the caller.
    unsafe { _mm512_mask_storeu_ps(out, mask, value) };
}

fn mask(lanes: usize) -> __mmask16 {
    ((1u32 << lanes) - 1) as __mmask16
}
