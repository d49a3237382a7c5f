//! The one inner kernel: a few rows times one panel of a packed matrix. Linear layers, adapters
//! and attention are all made of it.
//!
//! Each output is one chain of sums in the order of the inputs, whatever the number of rows: a
//! row's result does not depend on its neighbours.

mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use half::bf16;

/// Columns of a full panel: two vectors of 16 lanes.
pub const PANEL: usize = 32;
/// Most rows of one tile: 8 x 2 accumulators leave registers for the operands.
pub const TILE_ROWS: usize = 8;

/// An instruction set that this processor has: there is no other way to make one than to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

/// Instruction sets with code of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// AVX-512 with bf16 dot products (Zen 4, Cooper Lake, Sapphire Rapids).
    Avx512,
    /// The portable code, compiled for AVX2.
    Avx2,
    Portable,
}

/// Up to [`TILE_ROWS`] rows times one panel:
/// `out[r][c] = sum over k of x[r][k] * w[k][c]`, or added to `out` with a factor.
///
/// `x` points to `rows` rows of `depth` elements, `x_stride` apart, each aligned to 4 bytes; `w` to
/// `depth x width` elements in groups (see [`super::pack`]); `out` to `rows` rows of `width` sums,
/// `out_stride` apart, which nothing else reads or writes meanwhile. `ahead` is never read, only
/// prefetched: `ahead_bytes` from it are wanted next.
pub struct Tile<T> {
    pub x: *const T,
    pub x_stride: usize,
    pub rows: usize,
    pub w: *const T,
    pub depth: usize,
    pub width: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    pub write: Write,
    pub ahead: *const u8,
    pub ahead_bytes: usize,
}

/// What becomes of the sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Write {
    Store,
    /// `out += factor * sum`
    Add(f32),
}

impl Isa {
    /// The best that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                return Isa(Level::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                return Isa(Level::Avx2);
            }
        }
        Isa(Level::Portable)
    }

    /// Every one that this processor has.
    #[cfg(test)]
    pub fn available() -> Vec<Self> {
        let levels: &[Level] = match Self::detect().0 {
            Level::Avx512 => &[Level::Avx512, Level::Avx2, Level::Portable],
            Level::Avx2 => &[Level::Avx2, Level::Portable],
            Level::Portable => &[Level::Portable],
        };
        levels.iter().copied().map(Isa).collect()
    }

    /// Runs `f`, and what is inlined into it, compiled for this instruction set.
    #[inline]
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `detect` found the processor to have it.
            Level::Avx512 => unsafe { run_avx512(f) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `detect` found the processor to have it.
            Level::Avx2 => unsafe { run_avx2(f) },
            _ => f(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// # Safety
/// As for [`super::element::Element::multiply`].
#[inline]
pub unsafe fn multiply_bf16(isa: Isa, tile: &Tile<bf16>) {
    #[cfg(target_arch = "x86_64")]
    if isa.0 == Level::Avx512 {
        // SAFETY: forwarded from the caller; `detect` found the processor to have it.
        return unsafe { avx512::multiply(tile) };
    }
    // SAFETY: forwarded from the caller.
    isa.run(|| unsafe { portable::multiply(tile) })
}

/// # Safety
/// As for [`super::element::Element::multiply`].
#[inline]
pub unsafe fn multiply_f32(isa: Isa, tile: &Tile<f32>) {
    // SAFETY: forwarded from the caller.
    isa.run(|| unsafe { portable::multiply(tile) })
}
