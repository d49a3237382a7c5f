//! An adapter, packed for the kernels at its true rank.

use super::element::Element;
use super::model::PackedModel;
use super::pack::Packed;
use crate::backend::group::Group;
use crate::backend::{
    BackendError, HeapAllocator, HostAdapter, HostAllocator, HostBuffer, HostData,
};
use lorikeet_contract::adapter::{ArtifactHeader, ModuleEntry, TensorRef};
use std::ops::Range;
use std::sync::Arc;

/// Packs adapters as they come to host memory.
pub struct Packer<T> {
    model: Arc<PackedModel<T>>,
}

impl<T> Packer<T> {
    pub fn new(model: Arc<PackedModel<T>>) -> Self {
        Self { model }
    }
}

impl<T: Element> HostAllocator for Packer<T> {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBuffer>, BackendError> {
        HeapAllocator.allocate(bytes)
    }

    fn prepare(&self, adapter: HostAdapter) -> Result<HostAdapter, BackendError> {
        let packed = PackedAdapter::pack(&adapter.header, adapter.file()?, &self.model)?;
        Ok(HostAdapter { data: HostData::Prepared(Arc::new(packed)), ..adapter })
    }
}

/// An adapter in host memory, and on the device.
pub struct PackedAdapter<T> {
    /// Four per layer, in the order of [`Group::ALL`]; None where nothing is targeted.
    groups: Vec<Option<GroupAdapter<T>>>,
}

/// The targeted linears of one group: one matrix takes the input to all their ranks.
pub struct GroupAdapter<T> {
    /// The A matrices one below the other, each padded to whole groups of inputs of B.
    pub a: Packed<T>,
    pub modules: Vec<Module<T>>,
}

/// `y[columns] = (y[columns] + scale * B z[ranks]) * gain`
pub struct Module<T> {
    pub columns: Range<usize>,
    pub ranks: Range<usize>,
    pub b: Packed<T>,
    pub scale: f32,
    /// DoRA's `magnitude / norm`, one per output.
    pub gain: Option<Vec<f32>>,
}

impl<T: Element> PackedAdapter<T> {
    /// Checks and packs an adapter's file.
    pub fn pack(
        header: &ArtifactHeader,
        file: &[u8],
        model: &PackedModel<T>,
    ) -> Result<Self, BackendError> {
        header.check_fits(&model.spec).map_err(|e| BackendError::Adapter(e.to_string()))?;
        let mut groups = Vec::new();
        for layer in 0..model.layers.len() {
            for group in Group::ALL {
                groups.push(GroupAdapter::pack(header, file, model, layer, group)?);
            }
        }
        Ok(Self { groups })
    }

    pub fn group(&self, layer: usize, group: Group) -> Option<&GroupAdapter<T>> {
        self.groups[layer * Group::ALL.len() + group as usize].as_ref()
    }

    /// Largest number of ranks that one row's `z` holds.
    pub fn max_ranks(&self) -> usize {
        self.groups.iter().flatten().map(|g| g.a.outputs()).max().unwrap_or(0)
    }
}

/// Bytes that an adapter occupies once packed.
pub fn packed_bytes<T: Element>(header: &ArtifactHeader) -> u64 {
    let module = |m: &ModuleEntry| {
        let (inputs, outputs) = (u64::from(m.in_features), u64::from(m.out_features));
        let rank = u64::from(m.rank).next_multiple_of(T::GROUP as u64);
        let gains = if m.magnitude.is_some() { outputs * size_of::<f32>() as u64 } else { 0 };
        rank * (inputs + outputs) * size_of::<T>() as u64 + gains
    };
    header.modules.iter().map(module).sum()
}

impl<T: Element> GroupAdapter<T> {
    fn pack(
        header: &ArtifactHeader,
        file: &[u8],
        model: &PackedModel<T>,
        layer: usize,
        group: Group,
    ) -> Result<Option<Self>, BackendError> {
        let targeted = |m: &&ModuleEntry| m.layer as usize == layer && Group::of(m.linear) == group;
        let entries: Vec<&ModuleEntry> = header.modules.iter().filter(targeted).collect();
        let Some(first) = entries.first() else { return Ok(None) };
        let padded = |m: &ModuleEntry| (m.rank as usize).next_multiple_of(T::GROUP);
        let ranks: usize = entries.iter().map(|m| padded(m)).sum();
        let mut packed = Self {
            a: Packed::zeros(ranks, first.in_features as usize),
            modules: Vec::with_capacity(entries.len()),
        };
        let base = model.layers[layer].group(group);
        let mut start = 0;
        for entry in entries {
            let (rank, ranks) = (entry.rank as usize, start..start + padded(entry));
            let (a, b) = (read(file, entry.a)?, read(file, entry.b)?);
            for (r, row) in a.chunks_exact(entry.in_features as usize).enumerate() {
                packed.a.set_output(start + r, row.iter().copied());
            }
            let columns = Group::columns(&model.spec, entry.linear);
            let mut packed_b = Packed::zeros(columns.len(), ranks.len());
            for (output, row) in b.chunks_exact(rank).enumerate() {
                packed_b.set_output(output, row.iter().copied());
            }
            let magnitude = entry.magnitude.map(|m| read(file, m)).transpose()?;
            let gain = magnitude.map(|magnitude| {
                let norms = row_norms(base, columns.clone(), &a, &b, rank, entry.scale);
                magnitude.iter().zip(norms).map(|(m, norm)| m / norm).collect()
            });
            start = ranks.end;
            let scale = entry.scale;
            packed.modules.push(Module { columns, ranks, b: packed_b, scale, gain });
        }
        Ok(Some(packed))
    }
}

/// Norms of the rows of `W + scale * B A`, for DoRA (Liu et al., 2024, section 4.1).
fn row_norms<T: Element>(
    base: &Packed<T>,
    columns: Range<usize>,
    a: &[f32],
    b: &[f32],
    rank: usize,
    scale: f32,
) -> Vec<f32> {
    let mut row = Vec::new();
    let norm = |(column, b): (usize, &[f32])| {
        row.clear();
        row.extend(base.output(column));
        for (b, a) in b.iter().zip(a.chunks_exact(row.len())) {
            for (v, a) in row.iter_mut().zip(a) {
                *v += scale * b * a;
            }
        }
        row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32
    };
    columns.zip(b.chunks_exact(rank)).map(norm).collect()
}

fn read(file: &[u8], tensor: TensorRef) -> Result<Vec<f32>, BackendError> {
    let outside = || BackendError::Adapter("a tensor lies outside the file".into());
    Ok(tensor.dtype.to_f32(tensor.bytes_in(file).ok_or_else(outside)?))
}
