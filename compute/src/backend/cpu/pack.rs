//! Matrices in the order in which the kernels read them.
//!
//! The outputs (rows of a Hugging Face weight) are cut into panels of [`PANEL`]; the last panel
//! may be narrower and takes only its own size. Inside a panel, groups of [`Element::GROUP`]
//! inputs follow one another, and in a group the outputs:
//! `panel[k / GROUP][output][k % GROUP]`.

use super::element::Element;
use super::kernel::{Isa, PANEL, TILE_ROWS, Tile, Write};
use super::memory::Memory;
use super::shared::Columns;
use std::ops::Range;

/// Rows that go through all panels together: their inputs stay in the second-level cache.
const ROW_BLOCK: usize = 64;

/// A matrix of `outputs x inputs`, packed. `inputs` is a multiple of the group.
pub struct Packed<T> {
    outputs: usize,
    inputs: usize,
    data: Memory<T>,
}

/// Rows of kernel input, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    pub data: &'a [T],
    pub stride: usize,
    pub count: usize,
}

impl<T: Element> Packed<T> {
    /// All zero.
    pub fn zeros(outputs: usize, inputs: usize) -> Self {
        assert!(inputs.is_multiple_of(T::GROUP), "inputs are padded to whole groups");
        Self { outputs, inputs, data: Memory::zeroed(outputs * inputs) }
    }

    /// Writes one output's weights, from its first input on.
    pub fn set_output(&mut self, output: usize, weights: impl Iterator<Item = f32>) {
        let width = panel_width(self.outputs, output / PANEL);
        let start = panel_offset(self.inputs, output / PANEL);
        let panel = &mut self.data.as_mut_slice()[start..][..width * self.inputs];
        for (k, weight) in weights.enumerate() {
            panel[index_in_panel::<T>(width, output % PANEL, k)] = T::from_f32(weight);
        }
    }

    /// One output's weights.
    pub fn output(&self, output: usize) -> impl Iterator<Item = f32> + '_ {
        let width = panel_width(self.outputs, output / PANEL);
        let panel = self.panel(output / PANEL);
        (0..self.inputs).map(move |k| panel[index_in_panel::<T>(width, output % PANEL, k)].to_f32())
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Outputs of one panel.
    pub fn panel_outputs(&self, panel: usize) -> Range<usize> {
        panel * PANEL..(panel * PANEL + panel_width(self.outputs, panel))
    }

    fn panel(&self, panel: usize) -> &[T] {
        let width = panel_width(self.outputs, panel);
        &self.data.as_slice()[panel_offset(self.inputs, panel)..][..width * self.inputs]
    }

    /// `out[row][c] = x[row] . output c` for the outputs of some panels; `out`'s column 0 is the
    /// first output of the first panel.
    pub fn multiply(
        &self,
        isa: Isa,
        x: Rows<T>,
        panels: Range<usize>,
        out: &mut Columns,
        write: Write,
    ) {
        let first_column = panels.start * PANEL;
        for start in (0..x.count).step_by(ROW_BLOCK) {
            let block = start..(start + ROW_BLOCK).min(x.count);
            for panel in panels.clone() {
                let columns = self.panel_outputs(panel);
                let next = if panel + 1 < panels.end { self.panel(panel + 1) } else { &[] };
                multiply_panel(
                    isa,
                    x.slice(block.clone()),
                    Panel { data: self.panel(panel), width: columns.len() },
                    &mut out.part(block.clone(), columns.start - first_column),
                    write,
                    next,
                );
            }
        }
    }
}

impl<'a, T> Rows<'a, T> {
    pub fn slice(self, rows: Range<usize>) -> Rows<'a, T> {
        let data = &self.data[(rows.start * self.stride).min(self.data.len())..];
        Rows { data, stride: self.stride, count: rows.len() }
    }
}

/// One panel: its depth follows from its length.
#[derive(Clone, Copy)]
pub struct Panel<'a, T> {
    pub data: &'a [T],
    pub width: usize,
}

/// Rows times one panel, while fetching `next` into the cache.
pub fn multiply_panel<T: Element>(
    isa: Isa,
    x: Rows<T>,
    panel: Panel<T>,
    out: &mut Columns,
    write: Write,
    next: &[T],
) {
    let depth = panel.data.len() / panel.width;
    assert!(depth * panel.width == panel.data.len() && depth.is_multiple_of(T::GROUP));
    assert!(x.data.as_ptr().cast::<u32>().is_aligned() && x.stride.is_multiple_of(T::GROUP));
    assert!(panel.width <= PANEL && out.holds(x.count, panel.width));
    assert!(x.count == 0 || (x.count - 1) * x.stride + depth <= x.data.len());
    let tiles = x.count.div_ceil(TILE_ROWS);
    // One tile is bound by memory, and the processor's own prefetcher then does better alone.
    let ahead = if tiles > 1 { size_of_val(next) / tiles } else { 0 };
    for tile in 0..tiles {
        // Tiles of equal height: 12 rows are 6 + 6, not 8 + 4.
        let (start, end) = (x.count * tile / tiles, x.count * (tile + 1) / tiles);
        let tile = Tile {
            x: x.data[start * x.stride..].as_ptr(),
            x_stride: x.stride,
            rows: end - start,
            w: panel.data.as_ptr(),
            depth,
            width: panel.width,
            out: out.row_mut(start),
            out_stride: out.stride(),
            write,
            ahead: next.as_ptr().cast::<u8>().wrapping_add(tile * ahead),
            ahead_bytes: ahead,
        };
        // SAFETY: the assertions above bound every pointer.
        unsafe { T::multiply(isa, &tile) };
    }
}

/// Place of an output's k-th input in its panel.
#[inline(always)]
pub fn index_in_panel<T: Element>(width: usize, output: usize, k: usize) -> usize {
    (k / T::GROUP) * width * T::GROUP + output * T::GROUP + k % T::GROUP
}

fn panel_width(outputs: usize, panel: usize) -> usize {
    (outputs - panel * PANEL).min(PANEL)
}

fn panel_offset(inputs: usize, panel: usize) -> usize {
    panel * PANEL * inputs
}
