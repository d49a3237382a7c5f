//! One forward pass of the Llama family, as launches on a stream.

use super::device::{DevicePointer, Stream};
use super::error::CudaError;
use super::gemm::{Gemm, Numbers, Shape};
use super::kernels::{
    Attention, AttentionDecode, Embed, FEW_ROWS, FewRowsBf16, FewRowsF32, Gather, Grid, Kernel,
    KernelId, Kernels, LoraShrink, Quantise, Residual, RmsNorm, RopeKv, RowAdapters, Sample,
    Scales, SiluMul, Start,
};
use super::layout::{Group, Z_STRIDE};
use super::plan::ATTENTION_BLOCKS;
use super::weights::{DeviceWeights, Precision};
use super::workspace::{Buffers, PlanAddresses};

/// Thread blocks that the light kernels run at most on each multiprocessor.
const BLOCKS: u32 = 8;

/// What a step may leave out while it is measured: its results are then meaningless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Kernel(KernelId),
    /// Of all layers.
    Products(Group),
    OutputLayer,
}

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
    /// Chunks of prompts, beside single rows.
    pub has_chunks: bool,
    pub kv: DevicePointer,
    pub stream: &'a Stream,
    pub left_out: Option<Part>,
}

// SAFETY of all launches here: addresses are of `Buffers`, `DeviceWeights` and the plan, made for
// the largest step; work runs in order on one stream.
impl Forward<'_> {
    /// Leaves the rows, after the last norm, in `buffers.x`.
    pub fn run(&self) -> Result<(), CudaError> {
        self.embed()?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let number = index as u32;
            if index == 0 {
                self.norm(0, Scales::default(), layer.input_norm)?;
            }
            self.project(number, Group::Qkv)?;
            self.rope_kv(number)?;
            self.attention(number)?;
            self.quantise(self.buffers.context, Group::Output)?;
            self.project(number, Group::Output)?;
            self.add_and_norm(number, Group::Output, layer.post_attention_norm)?;
            self.project(number, Group::GateUp)?;
            self.silu_mul(number)?;
            self.quantise(self.buffers.activation, Group::Down)?;
            self.project(number, Group::Down)?;
            let next = self.weights.layers.get(index + 1);
            let norm = next.map_or(self.weights.norm, |next| next.input_norm);
            self.add_and_norm(number, Group::Down, norm)?;
        }
        Ok(())
    }

    /// The products of all layers alone, on what lies in the buffers: for measuring.
    pub fn products(&self) -> Result<(), CudaError> {
        for layer in 0..self.weights.config.spec.num_layers {
            for group in Group::ALL {
                self.multiply(layer, group)?;
            }
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
        self.launch(Start::Early, self.kernels.blocks(count, BLOCKS), &gather)?;
        self.head(count)?;
        let sample = Sample {
            step: self.plan.counts,
            draws: self.plan.draws,
            edits: self.plan.edits,
            masks: self.plan.masks,
            logits: b.logits,
            vocabulary: spec.vocab_size,
            first,
            count,
            tokens: b.tokens,
            logprobs: b.logprobs,
            top_ids: b.top_ids,
            top_logprobs: b.top_logprobs,
        };
        self.launch(Start::Early, self.kernels.blocks(count, 2), &sample)
    }

    fn launch<K: Kernel>(
        &self,
        start: Start,
        grid: impl Into<Grid>,
        arguments: &K,
    ) -> Result<(), CudaError> {
        if self.left_out == Some(Part::Kernel(K::ID)) {
            return Ok(());
        }
        // SAFETY: see above.
        unsafe { self.kernels.launch(self.stream, start, grid, arguments) }
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
        self.launch(Start::Afterwards, self.kernels.blocks(self.bucket, BLOCKS), &embed)
    }

    /// `x = norm(hidden + y)`; `y` of 0: `hidden` alone.
    fn norm(
        &self,
        y: DevicePointer,
        scales: Scales,
        weight: DevicePointer,
    ) -> Result<(), CudaError> {
        let b = self.buffers;
        let norm = RmsNorm {
            step: self.plan.counts,
            hidden: b.hidden,
            y,
            scales,
            weight,
            x: b.x,
            x8: b.x8,
            x_scales: b.x_scales,
            width: self.weights.config.spec.hidden_size,
            eps: self.weights.config.rms_norm_eps,
        };
        self.launch(Start::Early, self.kernels.blocks(self.bucket, BLOCKS), &norm)
    }

    /// The input of a group's product in e4m3, where the weights are.
    fn quantise(&self, x: DevicePointer, group: Group) -> Result<(), CudaError> {
        if self.weights.precision == Precision::Bf16 {
            return Ok(());
        }
        let (_, width) = group.shape(&self.weights.config.spec);
        let quantise = Quantise {
            step: self.plan.counts,
            x,
            out: self.buffers.x8,
            scales: self.buffers.x_scales,
            rows: 0,
            width,
        };
        self.launch(Start::Early, self.kernels.blocks(self.bucket, BLOCKS), &quantise)
    }

    /// `y = W x`, and `z = A x` for rows with adapters.
    fn project(&self, layer: u32, group: Group) -> Result<(), CudaError> {
        // The kernel for few rows does both.
        if self.has_adapters && !is_few(group_shape(self.weights, group, self.bucket)) {
            self.shrink(layer, group)?;
        }
        self.multiply(layer, group)
    }

    fn input(&self, group: Group) -> DevicePointer {
        match group {
            Group::Qkv | Group::GateUp => self.buffers.x,
            Group::Output => self.buffers.context,
            Group::Down => self.buffers.activation,
        }
    }

    fn multiply(&self, layer: u32, group: Group) -> Result<(), CudaError> {
        if self.left_out == Some(Part::Products(group)) {
            return Ok(());
        }
        let (x, y) = (self.input(group), self.buffers.y);
        let shape = group_shape(self.weights, group, self.bucket);
        let weights = self.weights.layers[layer as usize].group(group);
        match shape.numbers {
            Numbers::E4m3ToBf16 => {
                let x8 = self.buffers.x8;
                // SAFETY: see above.
                unsafe { self.gemm.multiply(self.stream, shape, weights, x8, y) }
            }
            _ if is_few(shape) => {
                let Shape { outputs, inputs, rows, .. } = shape;
                let adapters = self.row_adapters(layer, group);
                let few = FewRowsBf16 { weights, x, y, outputs, inputs, rows, adapters };
                let adapted = if self.has_adapters { rows } else { 0 };
                self.launch(Start::Early, self.kernels.few_rows_blocks(outputs, adapted), &few)
            }
            // SAFETY: see above.
            _ => unsafe { self.gemm.multiply(self.stream, shape, weights, x, y) },
        }
    }

    fn head(&self, rows: u32) -> Result<(), CudaError> {
        if self.left_out == Some(Part::OutputLayer) {
            return Ok(());
        }
        let shape = head_shape(self.weights, rows);
        let (weights, x, y) = (self.weights.lm_head, self.buffers.gathered, self.buffers.logits);
        if !is_few(shape) {
            // SAFETY: see above.
            return unsafe { self.gemm.multiply(self.stream, shape, weights, x, y) };
        }
        let Shape { outputs, inputs, rows, .. } = shape;
        let few = FewRowsF32 { weights, x, y, outputs, inputs, rows };
        self.launch(Start::Early, self.kernels.few_rows_blocks(outputs, 0), &few)
    }

    fn row_adapters(&self, layer: u32, group: Group) -> RowAdapters {
        if !self.has_adapters {
            return RowAdapters::default();
        }
        RowAdapters {
            step: self.plan.counts,
            tiles: self.plan.tiles,
            z: self.buffers.z,
            z_stride: Z_STRIDE,
            layer,
            group: group as u32,
            first_linear: group.linears()[0].index() as u32,
            linears: group.linears().len() as u32,
            unused: 0,
        }
    }

    fn shrink(&self, layer: u32, group: Group) -> Result<(), CudaError> {
        let b = self.buffers;
        let shrink = LoraShrink {
            step: self.plan.counts,
            tiles: self.plan.tiles,
            x: self.input(group),
            inputs: group.shape(&self.weights.config.spec).1,
            z: b.z,
            z_stride: Z_STRIDE,
            layer,
            group: group as u32,
            first_linear: group.linears()[0].index() as u32,
            linears: group.linears().len() as u32,
        };
        let grid = self.kernels.shrink_grid(self.bucket);
        self.launch(Start::Early, grid, &shrink)
    }

    fn scales(&self, layer: u32, group: Group) -> Scales {
        let outputs = self.weights.layers[layer as usize].scales(group);
        Scales { rows: self.buffers.x_scales, outputs }
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
            scales: self.scales(layer, Group::Qkv),
            family: self.weights.layers[layer as usize].heads(self.weights.config.rms_norm_eps),
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
        self.launch(Start::Early, blocks, &rope)
    }

    fn attention(&self, layer: u32) -> Result<(), CudaError> {
        let (spec, b) = (&self.weights.config.spec, self.buffers);
        let (heads, kv_heads) = (spec.num_heads, spec.num_kv_heads);
        let scale = std::f32::consts::LOG2_E / (spec.head_dim as f32).sqrt();
        let window = self.weights.config.window(layer as usize).unwrap_or(0) as u32;
        if self.has_chunks {
            let attention = Attention {
                step: self.plan.counts,
                items: self.plan.attention,
                block_table: self.plan.blocks,
                queries: b.queries,
                kv: self.kv,
                out: b.context,
                heads,
                kv_heads,
                layer,
                layers: spec.num_layers,
                window,
                scale,
            };
            let blocks = self.kernels.blocks(self.bucket * kv_heads, 1);
            self.launch(Start::Early, blocks, &attention)?;
        }
        let decode = AttentionDecode {
            step: self.plan.counts,
            items: self.plan.decode,
            block_table: self.plan.blocks,
            queries: b.queries,
            kv: self.kv,
            out: b.context,
            partial_out: b.partial_out,
            partial_sums: b.partial_sums,
            finished: b.finished_parts,
            queue: if self.has_chunks { b.queue } else { 0 },
            heads,
            kv_heads,
            layer,
            layers: spec.num_layers,
            window,
            scale,
        };
        // Long contexts come in parts; blocks that find no item end at once. Those that take items from
        // a queue stay.
        let each = if self.has_chunks { ATTENTION_BLOCKS } else { 16 };
        let blocks = self.kernels.blocks(self.bucket * kv_heads * 8, each);
        self.launch(Start::Early, blocks, &decode)
    }

    fn silu_mul(&self, layer: u32) -> Result<(), CudaError> {
        let width = self.weights.config.spec.intermediate_size;
        let silu = SiluMul {
            step: self.plan.counts,
            tiles: self.plan.tiles,
            y: self.buffers.y,
            z: self.buffers.z,
            z_stride: Z_STRIDE,
            scales: self.scales(layer, Group::GateUp),
            out: self.buffers.activation,
            width,
            layer,
        };
        let blocks = self.kernels.blocks((self.bucket * width / 64).div_ceil(4), 4);
        self.launch(Start::Early, blocks, &silu)
    }

    /// Adds a group's output, and its adapters', to the residual stream, and normalises that.
    fn add_and_norm(
        &self,
        layer: u32,
        group: Group,
        weight: DevicePointer,
    ) -> Result<(), CudaError> {
        let scales = self.scales(layer, group);
        if !self.has_adapters {
            return self.norm(self.buffers.y, scales, weight);
        }
        let width = self.weights.config.spec.hidden_size;
        let residual = Residual {
            step: self.plan.counts,
            tiles: self.plan.tiles,
            y: self.buffers.y,
            z: self.buffers.z,
            z_stride: Z_STRIDE,
            scales,
            hidden: self.buffers.hidden,
            width,
            layer,
            linear: group.linears()[0].index() as u32,
        };
        let blocks = self.kernels.blocks((self.bucket * width / 64).div_ceil(4), 4);
        self.launch(Start::Early, blocks, &residual)?;
        self.norm(0, Scales::default(), weight)
    }
}

/// A group's product.
pub fn group_shape(weights: &DeviceWeights, group: Group, rows: u32) -> Shape {
    let (outputs, inputs) = group.shape(&weights.config.spec);
    let numbers = match weights.precision {
        Precision::Bf16 => Numbers::Bf16,
        Precision::Fp8 => Numbers::E4m3ToBf16,
    };
    Shape { outputs, inputs, rows, numbers }
}

/// The output layer's product, in f32.
pub fn head_shape(weights: &DeviceWeights, rows: u32) -> Shape {
    let spec = &weights.config.spec;
    Shape { outputs: spec.vocab_size, inputs: spec.hidden_size, rows, numbers: Numbers::Bf16ToF32 }
}

/// Whether a product is left to the kernel for few rows.
pub fn is_few(shape: Shape) -> bool {
    shape.rows <= FEW_ROWS && shape.numbers != Numbers::E4m3ToBf16
}
