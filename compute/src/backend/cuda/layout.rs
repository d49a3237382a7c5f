//! What the host and the kernels both know of device memory: the structs of `kernels/prelude.cuh`
//! and of the kernels' own, and an adapter's extent.

use super::arena::EXTENT_ALIGN;
use crate::backend::BackendError;
pub use crate::backend::group::Group;
use bytemuck::{Pod, Zeroable};
use lorikeet_contract::adapter::{ArtifactHeader, ModuleEntry, TensorRef};
use lorikeet_contract::{BaseModelSpec, Linear};

/// Rows of a tile.
pub const TILE_ROWS: u32 = 16;
/// Tokens of a KV block.
pub const BLOCK_TOKENS: u32 = 16;
/// Largest rank of a module, as the contract has it.
pub const MAX_RANK: u32 = 512;
/// Values of a row of `z`: the ranks of three linears, each padded to a multiple of 8.
pub const Z_STRIDE: u32 = 3 * MAX_RANK;
/// Most log probabilities of likeliest tokens that a row gives.
pub const TOP_LOGPROBS: u32 = 20;
pub const NO_LOGPROBS: u32 = u32::MAX;
/// What is wanted of a row of logits: nothing but a copy, a draw, or the score of a given token.
pub const COPIED: u32 = 0;
pub const DRAWN: u32 = 1;
pub const SCORED: u32 = 2;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Row {
    pub token: i32,
    pub position: u32,
    pub block: u32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tile {
    pub adapter: u64,
    pub first_row: u32,
    pub rows: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct StepCounts {
    pub rows: u32,
    pub tiles: u32,
    pub first_adapted_tile: u32,
    pub attention_items: u32,
    pub decode_items: u32,
    pub logit_rows: u32,
}

/// Rows of a prefill chunk.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct AttentionItem {
    pub first_row: u32,
    pub rows: u32,
    pub position: u32,
    pub blocks: u32,
}

/// A part of a single row's context.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DecodeItem {
    pub row: u32,
    pub blocks: u32,
    pub kv_start: u32,
    pub kv_end: u32,
    pub partial: u32,
    pub first_partial: u32,
    pub partials: u32,
    pub counter: u32,
    /// Of the row.
    pub position: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct Draw {
    pub seed: u64,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub top_k: u32,
    pub output_index: u32,
    pub logprobs: u32,
    pub wanted: u32,
    /// Where its edits stand in the step's list, and how many they are.
    pub first_edit: u32,
    pub edits: u32,
    /// 0: any token may be drawn; else 1 + the place of its mask among the step's.
    pub mask: u32,
    /// The token whose log probability is wanted of a [`SCORED`] row.
    pub scored: u32,
    pub unused: u32,
}

/// A change of one logit before the draw; see [`LogitEdit`](crate::sampling::LogitEdit).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct Edit {
    pub token: u32,
    pub divisor: f32,
    pub add: f32,
    /// The kernel keeps the logit here, and restores it after the draw.
    pub saved: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct AdapterGroup {
    pub a: u64,
    pub ranks: u32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct AdapterModule {
    pub b: u64,
    pub gain: u64,
    pub rank: u32,
    pub z: u32,
    pub scale: f32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct AdapterLayer {
    pub groups: [AdapterGroup; 4],
    pub modules: [AdapterModule; 7],
}

/// A tensor's place in the file and, as bf16, in the extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub tensor: TensorRef,
    pub offset: u64,
}

/// A DoRA module's gains, to be computed on the device once A and B are there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain {
    pub layer: u32,
    pub linear: Linear,
    pub magnitude: TensorRef,
    pub module: AdapterModule,
    /// The module's own A.
    pub a: u64,
}

/// An adapter's contiguous extent: a table of its layers, then the tensors as bf16, at their true
/// rank. Offsets are in bytes from its start, so that it may move.
#[derive(Debug, Clone)]
pub struct ExtentLayout {
    pub bytes: u64,
    pub table: Vec<AdapterLayer>,
    /// A and B tensors, in rising order of offset.
    pub tensors: Vec<Placed>,
    pub gains: Vec<Gain>,
}

/// Tensors start at multiples of this; the packed file has the same, so that a bf16 file keeps its
/// spacing and is copied in one piece.
pub const TENSOR_ALIGN: u64 = 64;

impl ExtentLayout {
    /// Lays out a verified adapter; an error when it does not fit the model.
    pub fn new(header: &ArtifactHeader, spec: &BaseModelSpec) -> Result<Self, BackendError> {
        header.check_fits(spec).map_err(|e| BackendError::Adapter(e.to_string()))?;
        if header.max_rank() > MAX_RANK {
            let rank = header.max_rank();
            return Err(BackendError::Adapter(format!(
                "rank {rank}: at most {MAX_RANK} is served"
            )));
        }
        let mut layout = Self {
            bytes: 0,
            table: vec![AdapterLayer::default(); spec.num_layers as usize],
            tensors: Vec::new(),
            gains: Vec::new(),
        };
        layout.reserve(u64::from(spec.num_layers) * size_of::<AdapterLayer>() as u64);
        for layer in 0..spec.num_layers {
            for group in Group::ALL {
                let of = |m: &&ModuleEntry| m.layer == layer && group.linears().contains(&m.linear);
                let mut entries: Vec<&ModuleEntry> = header.modules.iter().filter(of).collect();
                entries.sort_by_key(|m| m.linear);
                layout.add(layer, group, &entries);
            }
        }
        layout.bytes = layout.bytes.next_multiple_of(EXTENT_ALIGN);
        Ok(layout)
    }

    fn add(&mut self, layer: u32, group: Group, entries: &[&ModuleEntry]) {
        let mut ranks = 0;
        let mut z = 0;
        let mut own_a = Vec::with_capacity(entries.len());
        for entry in entries {
            // Inputs are a multiple of 32, so that the A matrices stand without gaps.
            own_a.push(self.place(entry.a, u64::from(entry.rank) * u64::from(entry.in_features)));
            ranks += entry.rank;
        }
        let a = own_a.first().copied().unwrap_or(0);
        self.table[layer as usize].groups[group as usize] = AdapterGroup { a, ranks, unused: 0 };
        for (entry, a) in entries.iter().zip(own_a) {
            let b = self.place(entry.b, u64::from(entry.rank) * u64::from(entry.out_features));
            let mut module =
                AdapterModule { b, gain: 0, rank: entry.rank, z, scale: entry.scale, unused: 0 };
            if let Some(magnitude) = entry.magnitude {
                module.gain = self.reserve(u64::from(entry.out_features) * 4);
                self.gains.push(Gain { layer, linear: entry.linear, magnitude, module, a });
            }
            z += entry.rank.next_multiple_of(8);
            self.table[layer as usize].modules[entry.linear.index()] = module;
        }
    }

    fn place(&mut self, tensor: TensorRef, values: u64) -> u64 {
        let offset = self.reserve(values * 2);
        self.tensors.push(Placed { tensor, offset });
        offset
    }

    fn reserve(&mut self, bytes: u64) -> u64 {
        let offset = self.bytes.next_multiple_of(TENSOR_ALIGN);
        self.bytes = offset + bytes;
        offset
    }
}
