//! The kernels that read a product's outputs and add what adapters contribute: rope and KV write,
//! SiLU, residual.

use super::lab::{Lab, Random, relative_error, to_f32};
use super::lora::PlannedStep;
use super::{CheckError, kv};
use crate::backend::cuda::device::DeviceMemory;
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::kernels::{Heads, Residual, RopeKv, Scales, SiluMul, Start};
use crate::backend::cuda::layout::{Group, Z_STRIDE};
use crate::backend::cuda::weights::DeviceWeights;
use half::bf16;

/// The kernel that reads a group's outputs.
pub struct Consumer<'a> {
    lab: &'a Lab,
    step: &'a PlannedStep<'a>,
    group: Group,
    weights: &'a DeviceWeights,
    scales: Scales,
    /// KV blocks from the first that the step uses.
    kv: DeviceMemory,
    first_block: u32,
}

impl<'a> Consumer<'a> {
    pub fn new(
        lab: &'a Lab,
        step: &'a PlannedStep<'a>,
        group: Group,
        weights: &'a DeviceWeights,
        scales: Scales,
    ) -> Result<Self, CudaError> {
        let blocks = || step.plan.rows.iter().map(|row| row.block);
        let first_block = blocks().min().unwrap_or(0);
        let count = blocks().max().unwrap_or(0) + 1 - first_block;
        let bytes = u64::from(count) * kv::block_bytes(lab) as u64;
        let kv = lab.device.allocate("device memory for keys and values", bytes)?;
        Ok(Self { lab, step, group, weights, scales, kv, first_block })
    }

    /// Runs the kernel and compares with what these outputs, adapters included, give.
    pub fn check(&self, adapted: &[f32]) -> Result<(&'static str, f64), CheckError> {
        match self.group {
            Group::Qkv => Ok(("rope_kv", self.check_rope(adapted)?)),
            Group::GateUp => Ok(("silu_mul", self.check_silu(adapted)?)),
            Group::Output | Group::Down => Ok(("residual", self.check_residual(adapted)?)),
        }
    }

    pub fn launch(&self) -> Result<(), CudaError> {
        let (spec, b, at) = (&self.lab.spec, &self.lab.buffers, self.step.at);
        let (lab, tiles) = (self.lab, self.step.plan.counts.tiles);
        match self.group {
            Group::Qkv => {
                let heads = spec.num_heads + 2 * spec.num_kv_heads;
                let rope = RopeKv {
                    step: at.counts,
                    rows: at.rows,
                    tiles: at.tiles,
                    y: b.y,
                    z: b.z,
                    z_stride: Z_STRIDE,
                    scales: self.scales,
                    family: Heads::default(),
                    cosines: self.weights.cosines,
                    sines: self.weights.sines,
                    queries: b.queries,
                    kv: self
                        .kv
                        .address()
                        .wrapping_sub(u64::from(self.first_block) * kv::block_bytes(lab) as u64),
                    heads: spec.num_heads,
                    kv_heads: spec.num_kv_heads,
                    layer: 0,
                    layers: 1,
                };
                let blocks = lab.kernels.blocks((tiles * heads).div_ceil(4), 4);
                // SAFETY: addresses are of the lab's buffers and of the blocks that the step uses.
                unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, blocks, &rope) }
            }
            Group::GateUp => {
                let width = spec.intermediate_size;
                let silu = SiluMul {
                    step: at.counts,
                    tiles: at.tiles,
                    y: b.y,
                    z: b.z,
                    z_stride: Z_STRIDE,
                    scales: self.scales,
                    out: b.activation,
                    width,
                    layer: 0,
                };
                let blocks = lab.kernels.blocks((tiles * width / 64).div_ceil(4), 4);
                // SAFETY: addresses are of the lab's buffers, made for more rows.
                unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, blocks, &silu) }
            }
            Group::Output | Group::Down => {
                let width = spec.hidden_size;
                let residual = Residual {
                    step: at.counts,
                    tiles: at.tiles,
                    y: b.y,
                    z: b.z,
                    z_stride: Z_STRIDE,
                    scales: self.scales,
                    hidden: b.hidden,
                    width,
                    layer: 0,
                    linear: self.group.linears()[0].index() as u32,
                };
                let blocks = lab.kernels.blocks((tiles * width / 64).div_ceil(4), 4);
                // SAFETY: as above.
                unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, blocks, &residual) }
            }
        }
    }

    fn check_residual(&self, adapted: &[f32]) -> Result<f64, CheckError> {
        let hidden = Random::new(9).floats(adapted.len(), 1.0);
        self.lab.write(self.lab.buffers.hidden, &hidden)?;
        self.launch()?;
        let out: Vec<f32> = self.lab.read(self.lab.buffers.hidden, adapted.len())?;
        let expected: Vec<f32> = hidden.iter().zip(adapted).map(|(h, y)| h + y).collect();
        Ok(relative_error(&out, &expected))
    }

    fn check_silu(&self, adapted: &[f32]) -> Result<f64, CheckError> {
        let width = self.lab.spec.intermediate_size as usize;
        self.launch()?;
        let out: Vec<bf16> = self.lab.read(self.lab.buffers.activation, adapted.len() / 2)?;
        let mut expected = Vec::with_capacity(out.len());
        for row in adapted.chunks(2 * width) {
            let (gate, up) = row.split_at(width);
            expected.extend(gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u));
        }
        Ok(relative_error(&to_f32(&out), &expected))
    }

    /// Queries, then keys and values as they lie in the blocks.
    fn check_rope(&self, adapted: &[f32]) -> Result<f64, CheckError> {
        let spec = &self.lab.spec;
        let (heads, kv_heads) = (spec.num_heads as usize, spec.num_kv_heads as usize);
        let dim = spec.head_dim as usize;
        self.launch()?;
        let rows = &self.step.plan.rows;
        let queries: Vec<bf16> =
            self.lab.read(self.lab.buffers.queries, rows.len() * heads * dim)?;
        let kv: Vec<u8> = self.lab.read(self.kv.address(), self.kv.bytes() as usize)?;
        let (mut out, mut expected) = (kv::queries_to_f32(self.lab, &queries), Vec::new());
        let row_width = (heads + 2 * kv_heads) * dim;
        for (row, adapted) in rows.iter().zip(adapted.chunks(row_width)) {
            for head in adapted[..heads * dim].chunks(dim) {
                expected.extend(rotate(head, row.position));
            }
        }
        for (row, adapted) in rows.iter().zip(adapted.chunks(row_width)) {
            let block = kv::block_bytes(self.lab);
            let block = &kv[(row.block - self.first_block) as usize * block..][..block];
            let token = row.position as usize % 16;
            let (keys, values) = adapted[heads * dim..].split_at(kv_heads * dim);
            for (head, (key, value)) in keys.chunks(dim).zip(values.chunks(dim)).enumerate() {
                out.extend(kv::key(self.lab, block, head, token));
                expected.extend(rotate(key, row.position));
                out.extend(kv::value(self.lab, block, head, token));
                expected.extend(value);
            }
        }
        Ok(relative_error(&out, &expected))
    }
}

fn rotate(head: &[f32], position: u32) -> Vec<f32> {
    let half = head.len() / 2;
    let (low, high) = head.split_at(half);
    let turn = |i: usize| {
        let frequency = 1.0 / super::lora::ROPE_THETA.powf(i as f32 / half as f32);
        (position as f32 * frequency).sin_cos()
    };
    let first = (0..half).map(|i| low[i] * turn(i).1 - high[i] * turn(i).0);
    let second = (0..half).map(|i| high[i] * turn(i).1 + low[i] * turn(i).0);
    first.chain(second).collect()
}
