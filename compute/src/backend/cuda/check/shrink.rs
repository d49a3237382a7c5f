//! How a step computes `z = A x`: by a kernel of its own, or, of few rows, beside the product.

use super::lab::Lab;
use super::lora::PlannedStep;
use crate::backend::cuda::device::DevicePointer;
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::forward::{group_shape, is_few};
use crate::backend::cuda::gemm::Shape;
use crate::backend::cuda::kernels::{FewRowsBf16, Grid, LoraShrink, RowAdapters, Start};
use crate::backend::cuda::layout::{Group, Z_STRIDE};
use crate::backend::cuda::weights::DeviceWeights;

pub enum Shrink {
    Alone(LoraShrink, Grid),
    WithProduct(FewRowsBf16),
}

impl Shrink {
    /// As a step of so many rows has it, of the first layer. `z` comes into the lab's buffer.
    pub fn new(
        lab: &Lab,
        step: &PlannedStep,
        of: Group,
        weights: &DeviceWeights,
        x: DevicePointer,
    ) -> Self {
        let rows = step.plan.rows.len() as u32;
        let shape = group_shape(weights, of, rows);
        let Shape { outputs, inputs, .. } = shape;
        let (tables, tiles, z) = (step.at.counts, step.at.tiles, lab.buffers.z);
        let (layer, group, z_stride) = (0, of as u32, Z_STRIDE);
        let (first_linear, linears) = (of.linears()[0].index() as u32, of.linears().len() as u32);
        if !is_few(shape) {
            let shrink = LoraShrink {
                step: tables,
                tiles,
                x,
                inputs,
                z,
                z_stride,
                layer,
                group,
                first_linear,
                linears,
            };
            return Self::Alone(shrink, lab.kernels.shrink_grid(rows));
        }
        let adapters = RowAdapters {
            step: tables,
            tiles,
            z,
            z_stride,
            layer,
            group,
            first_linear,
            linears,
            unused: 0,
        };
        let (weights, y) = (weights.layers[0].group(of), lab.buffers.activation);
        Self::WithProduct(FewRowsBf16 { weights, x, y, outputs, inputs, rows, adapters })
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Alone(..) => "lora_shrink",
            Self::WithProduct(_) => "few_rows",
        }
    }

    /// Bytes that it reads beside the A matrices.
    pub fn weights_bytes(&self) -> u64 {
        match self {
            Self::Alone(..) => 0,
            Self::WithProduct(few) => u64::from(few.outputs) * u64::from(few.inputs) * 2,
        }
    }

    pub fn launch(&self, lab: &Lab) -> Result<(), CudaError> {
        let (stream, start) = (&lab.stream, Start::Afterwards);
        match self {
            // SAFETY: addresses are of the lab's buffers, made for more rows, and of the weights.
            Self::Alone(shrink, grid) => unsafe {
                lab.kernels.launch(stream, start, *grid, shrink)
            },
            Self::WithProduct(few) => {
                let blocks = lab.kernels.few_rows_blocks(few.outputs, few.rows);
                // SAFETY: as above.
                unsafe { lab.kernels.launch(stream, start, blocks, few) }
            }
        }
    }
}
