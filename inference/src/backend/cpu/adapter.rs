//! An adapter, packed for the kernels at its true rank.

use super::element::Element;
use super::model::{Group, PackedModel};
use super::pack::Packed;
use crate::backend::BackendError;
use half::{bf16, f16};
use lorikeet_contract::BaseModelSpec;
use lorikeet_contract::adapter::{ArtifactHeader, Dtype, ModuleEntry, TensorRef};
use std::ops::Range;

/// An adapter on the device.
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
    /// Reads, checks and packs an adapter's file.
    pub fn pack(
        header: &ArtifactHeader,
        file: &[u8],
        model: &PackedModel<T>,
    ) -> Result<Self, BackendError> {
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

/// Whether an adapter fits the model; whatever passes can be packed.
pub fn check(header: &ArtifactHeader, spec: &BaseModelSpec) -> Result<(), BackendError> {
    let mut seen = std::collections::HashSet::new();
    for m in &header.modules {
        let refuse = |what: &str| {
            let place = format!("layer {} {}", m.layer, m.linear.as_str());
            Err(BackendError::Adapter(format!("{place}: {what}")))
        };
        if m.layer >= spec.num_layers {
            return refuse("the base model has no such layer");
        }
        if (m.out_features as usize, m.in_features as usize) != spec.shape(m.linear) {
            return refuse("the base model's layer has another shape");
        }
        if !seen.insert((m.layer, m.linear)) {
            return refuse("the layer is targeted twice");
        }
    }
    Ok(())
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
    let range = usize::try_from(tensor.offset).ok().and_then(|start| {
        let end = start.checked_add(usize::try_from(tensor.bytes).ok()?)?;
        file.get(start..end)
    });
    let Some(bytes) = range else {
        return Err(BackendError::Adapter("a tensor lies outside the file".into()));
    };
    let words = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    Ok(match tensor.dtype {
        Dtype::F32 => {
            let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            bytes.chunks_exact(4).map(float).collect()
        }
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_bits(words(b)).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_bits(words(b)).to_f32()).collect(),
    })
}
