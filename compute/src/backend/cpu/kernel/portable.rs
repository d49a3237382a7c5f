//! The same kernel in plain Rust, shaped so that the compiler vectorises the loop over columns.

use super::{PANEL, TILE_ROWS, Tile, Write};
use crate::backend::cpu::element::Element;

/// # Safety
/// The tile's pointers are valid as [`Tile`] says.
#[inline(always)]
pub unsafe fn multiply<T: Element>(tile: &Tile<T>) {
    debug_assert!(tile.rows <= TILE_ROWS && tile.width <= PANEL);
    // SAFETY: forwarded from the caller; a panel holds `depth x width` elements.
    let panel = unsafe { std::slice::from_raw_parts(tile.w, tile.depth * tile.width) };
    for r in 0..tile.rows {
        // SAFETY: forwarded from the caller; each row holds `depth` elements.
        let x = unsafe {
            std::slice::from_raw_parts(tile.x.wrapping_add(r * tile.x_stride), tile.depth)
        };
        // SAFETY: forwarded from the caller; each row of `out` holds `width` sums.
        let out = unsafe {
            std::slice::from_raw_parts_mut(tile.out.wrapping_add(r * tile.out_stride), tile.width)
        };
        let mut sums = [0f32; PANEL];
        match tile.width {
            PANEL => add_products::<T, PANEL>(x, panel, &mut sums),
            width => add_narrow(x, panel, width, &mut sums),
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            match tile.write {
                Write::Store => *out = sum,
                Write::Add(factor) => *out += factor * sum,
            }
        }
    }
}

#[inline(always)]
fn add_products<T: Element, const W: usize>(x: &[T], panel: &[T], sums: &mut [f32; W]) {
    for (x, columns) in x.chunks_exact(T::GROUP).zip(panel.chunks_exact(W * T::GROUP)) {
        for (sum, column) in sums.iter_mut().zip(columns.chunks_exact(T::GROUP)) {
            for (x, w) in x.iter().zip(column) {
                *sum += x.to_f32() * w.to_f32();
            }
        }
    }
}

#[inline(always)]
fn add_narrow<T: Element>(x: &[T], panel: &[T], width: usize, sums: &mut [f32; PANEL]) {
    for (x, columns) in x.chunks_exact(T::GROUP).zip(panel.chunks_exact(width * T::GROUP)) {
        for (sum, column) in sums.iter_mut().zip(columns.chunks_exact(T::GROUP)) {
            for (x, w) in x.iter().zip(column) {
                *sum += x.to_f32() * w.to_f32();
            }
        }
    }
}
