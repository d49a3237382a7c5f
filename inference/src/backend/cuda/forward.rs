//! One forward pass of the Llama family, as launches on a stream.

use super::device::{Device, DevicePointer, Event, Stream};
use super::error::CudaError;
use super::gemm::{Gemm, Shape};
use super::kernels::{
    Attention, Combine, Embed, Gather, Kernels, LoraShrink, Residual, RmsNorm, RopeKv, Sample,
    SiluMul,
};
use super::layout::{Group, Z_STRIDE};
use super::weights::DeviceWeights;
use super::workspace::{Buffers, PlanAddresses};
use lorikeet_contract::Linear;
use std::sync::Arc;

/// Thread blocks that the light kernels run at most on each multiprocessor.
const BLOCKS: u32 = 8;

pub struct Forward<'a> {
    pub kernels: &'a Kernels,
    pub gemm: &'a Gemm,
    pub weights: &'a DeviceWeights,
    pub buffers: &'a Buffers,
    pub plan: PlanAddresses,
    /// Rows of the products, at least the step's. Grids are chosen by it too: nothing here depends on
    /// one step alone, so that a recorded graph serves all of the bucket.
    pub bucket: u32,
    pub has_adapters: bool,
    pub kv: DevicePointer,
    pub stream: &'a Stream,
    pub beside: &'a Beside,
}

/// A second stream, for work that may run beside a product.
pub struct Beside {
    stream: Stream,
    fork: Event,
    join: Event,
}

impl Beside {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            stream: device.stream()?,
            fork: device.event(false)?,
            join: device.event(false)?,
        })
    }
}

// SAFETY of all launches here: addresses are of `Buffers`, `DeviceWeights` and the plan, made for
// the largest step; work runs in order on one stream, but for the shrink, which `project` encloses.
impl Forward<'_> {
    /// Leaves the rows, after the last norm, in `buffers.x`.
    pub fn run(&self) -> Result<(), CudaError> {
        let b = self.buffers;
        self.embed()?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let number = index as u32;
            if index == 0 {
                self.norm(0, layer.input_norm)?;
            }
            self.project(number, Group::Qkv, b.x)?;
            self.rope_kv(number)?;
            self.attention(number)?;
            self.project(number, Group::Output, b.context)?;
            self.add_and_norm(number, Linear::OProj, layer.post_attention_norm)?;
            self.project(number, Group::GateUp, b.x)?;
            self.silu_mul(number)?;
            self.project(number, Group::Down, b.activation)?;
            let next = self.weights.layers.get(index + 1);
            let norm = next.map_or(self.weights.norm, |next| next.input_norm);
            self.add_and_norm(number, Linear::DownProj, norm)?;
        }
        Ok(())
    }

    /// Logits of up to `count` rows from logit `first` on, in `buffers.logits`, and the draws from
    /// them. `count` is a bucket of the output layer.
    pub fn output(&self, first: u32, count: u32) -> Result<(), CudaError> {
        let (spec, b) = (&self.weights.config.spec, self.buffers);
        let gather = Gather {
            step: self.plan.counts,
            logit_rows: self.plan.logit_rows,
            x: b.x,
            out: b.gathered,
            width: spec.hidden_size,
            first,
            count,
        };
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, self.kernels.blocks(count, BLOCKS), &gather) }?;
        let shape = head_shape(self.weights, count);
        let head = self.weights.lm_head;
        // SAFETY: see above.
        unsafe { self.gemm.multiply(self.stream, shape, head, b.gathered, b.logits) }?;
        let sample = Sample {
            step: self.plan.counts,
            draws: self.plan.draws,
            logits: b.logits,
            vocabulary: spec.vocab_size,
            first,
            count,
            tokens: b.tokens,
            logprobs: b.logprobs,
            top_ids: b.top_ids,
            top_logprobs: b.top_logprobs,
        };
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, self.kernels.blocks(count, 2), &sample) }
    }

    fn embed(&self) -> Result<(), CudaError> {
        let embed = Embed {
            step: self.plan.counts,
            rows: self.plan.rows,
            sampled: self.buffers.tokens,
            table: self.weights.embedding,
            hidden: self.buffers.hidden,
            width: self.weights.config.spec.hidden_size,
        };
        let blocks = self.kernels.blocks(self.bucket, BLOCKS);
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, blocks, &embed) }
    }

    /// `x = norm(hidden + y)`; `y` of 0: `hidden` alone.
    fn norm(&self, y: DevicePointer, weight: DevicePointer) -> Result<(), CudaError> {
        let norm = RmsNorm {
            step: self.plan.counts,
            hidden: self.buffers.hidden,
            y,
            weight,
            x: self.buffers.x,
            width: self.weights.config.spec.hidden_size,
            eps: self.weights.config.rms_norm_eps,
        };
        let blocks = self.kernels.blocks(self.bucket, BLOCKS);
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, blocks, &norm) }
    }

    /// `y = W x` and, beside it, `z = A x` for rows with adapters.
    fn project(&self, layer: u32, group: Group, x: DevicePointer) -> Result<(), CudaError> {
        if !self.has_adapters {
            return self.multiply(layer, group, x);
        }
        let beside = self.beside;
        self.stream.record(&beside.fork)?;
        beside.stream.wait(&beside.fork)?;
        // First, so that it finds room before the product has taken the whole device.
        self.shrink(layer, group, x)?;
        beside.stream.record(&beside.join)?;
        self.multiply(layer, group, x)?;
        self.stream.wait(&beside.join)
    }

    fn multiply(&self, layer: u32, group: Group, x: DevicePointer) -> Result<(), CudaError> {
        let (outputs, inputs) = group.shape(&self.weights.config.spec);
        let shape = Shape { outputs, inputs, rows: self.bucket, wide: false };
        let weights = self.weights.layers[layer as usize].group(group);
        // SAFETY: see above.
        unsafe { self.gemm.multiply(self.stream, shape, weights, x, self.buffers.y) }
    }

    fn shrink(&self, layer: u32, group: Group, x: DevicePointer) -> Result<(), CudaError> {
        let b = self.buffers;
        let shrink = LoraShrink {
            step: self.plan.counts,
            tiles: self.plan.tiles,
            x,
            inputs: group.shape(&self.weights.config.spec).1,
            z: b.z,
            z_stride: Z_STRIDE,
            partials: b.partials,
            finished: b.finished,
            layer,
            group: group as u32,
            first_linear: group.linears()[0].index() as u32,
            linears: group.linears().len() as u32,
        };
        let blocks = self.kernels.blocks(u32::MAX, 2);
        // SAFETY: see above; what reads `z` waits for both streams.
        unsafe { self.kernels.launch(&self.beside.stream, blocks, &shrink) }
    }

    fn rope_kv(&self, layer: u32) -> Result<(), CudaError> {
        let (spec, b) = (&self.weights.config.spec, self.buffers);
        let rope = RopeKv {
            step: self.plan.counts,
            rows: self.plan.rows,
            tiles: self.plan.tiles,
            y: b.y,
            z: b.z,
            z_stride: Z_STRIDE,
            cosines: self.weights.cosines,
            sines: self.weights.sines,
            queries: b.queries,
            kv: self.kv,
            heads: spec.num_heads,
            kv_heads: spec.num_kv_heads,
            layer,
            layers: spec.num_layers,
        };
        let heads = spec.num_heads + 2 * spec.num_kv_heads;
        let blocks = self.kernels.blocks((self.bucket * heads).div_ceil(4), 4);
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, blocks, &rope) }
    }

    fn attention(&self, layer: u32) -> Result<(), CudaError> {
        let (spec, b) = (&self.weights.config.spec, self.buffers);
        let attention = Attention {
            step: self.plan.counts,
            items: self.plan.attention,
            block_table: self.plan.blocks,
            queries: b.queries,
            kv: self.kv,
            out: b.context,
            partial_out: b.partial_out,
            partial_sums: b.partial_sums,
            heads: spec.num_heads,
            kv_heads: spec.num_kv_heads,
            layer,
            layers: spec.num_layers,
            scale: std::f32::consts::LOG2_E / (spec.head_dim as f32).sqrt(),
        };
        // Long contexts come in parts; blocks that find no item end at once.
        let blocks = self.kernels.blocks(self.bucket * spec.num_kv_heads * 8, 16);
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, blocks, &attention) }?;
        let combine = Combine {
            step: self.plan.counts,
            items: self.plan.combine,
            partial_out: b.partial_out,
            partial_sums: b.partial_sums,
            out: b.context,
            heads: spec.num_heads,
        };
        let blocks = self.kernels.blocks(self.bucket * spec.num_heads, 4);
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, blocks, &combine) }
    }

    fn silu_mul(&self, layer: u32) -> Result<(), CudaError> {
        let width = self.weights.config.spec.intermediate_size;
        let silu = SiluMul {
            step: self.plan.counts,
            tiles: self.plan.tiles,
            y: self.buffers.y,
            z: self.buffers.z,
            z_stride: Z_STRIDE,
            out: self.buffers.activation,
            width,
            layer,
        };
        let blocks = self.kernels.blocks((self.bucket * width / 64).div_ceil(4), 4);
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, blocks, &silu) }
    }

    /// Adds a linear's output, and its adapters', to the residual stream, and normalises that.
    fn add_and_norm(
        &self,
        layer: u32,
        linear: Linear,
        weight: DevicePointer,
    ) -> Result<(), CudaError> {
        if !self.has_adapters {
            return self.norm(self.buffers.y, weight);
        }
        let width = self.weights.config.spec.hidden_size;
        let residual = Residual {
            step: self.plan.counts,
            tiles: self.plan.tiles,
            y: self.buffers.y,
            z: self.buffers.z,
            z_stride: Z_STRIDE,
            hidden: self.buffers.hidden,
            width,
            layer,
            linear: linear.index() as u32,
        };
        let blocks = self.kernels.blocks((self.bucket * width / 64).div_ceil(4), 4);
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, blocks, &residual) }?;
        self.norm(0, weight)
    }
}

/// The output layer's product, in f32.
pub fn head_shape(weights: &DeviceWeights, rows: u32) -> Shape {
    let spec = &weights.config.spec;
    Shape { outputs: spec.vocab_size, inputs: spec.hidden_size, rows, wide: true }
}
