//! The two number formats that the kernels compute in.

use super::kernel::{self, Isa, Tile};
use half::bf16;

/// A kernel's input type: bf16 for serving, f32 for exact tests. Sums are always f32.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// Consecutive inputs (of the summed dimension) that lie side by side in a panel.
    const GROUP: usize;

    fn from_f32(value: f32) -> Self;

    fn to_f32(self) -> f32;

    /// Multiplies one tile.
    ///
    /// # Safety
    /// The tile's pointers are valid as [`Tile`] says.
    unsafe fn multiply(isa: Isa, tile: &Tile<Self>);
}

impl Element for bf16 {
    /// `vdpbf16ps` sums two products per lane.
    const GROUP: usize = 2;

    /// Rounds to nearest even; branch-free, so that loops over it vectorise.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet_nan } else { rounded } as u16)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline]
    unsafe fn multiply(isa: Isa, tile: &Tile<Self>) {
        // SAFETY: forwarded from the caller.
        unsafe { kernel::multiply_bf16(isa, tile) }
    }
}

impl Element for f32 {
    const GROUP: usize = 1;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline]
    unsafe fn multiply(isa: Isa, tile: &Tile<Self>) {
        // SAFETY: forwarded from the caller.
        unsafe { kernel::multiply_f32(isa, tile) }
    }
}
