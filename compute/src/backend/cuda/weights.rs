//! The base model in device memory: linears that read the same input stand one below the other,
//! row-major as cublasLt takes them.

use super::device::{Cursor, Device, DeviceMemory, DevicePointer, Stream};
use super::error::CudaError;
use super::kernels::{Fill, Heads, Kernels, Quantise, Start};
use super::layout::Group;
use super::staging::{Source, Staging};
use crate::model::{Matrix, ModelConfig, ModelWeights};
use lorikeet_contract::BaseModelSpec;
use std::sync::Arc;

/// How the layers' weights are kept. Embedding and output layer stay in bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Precision {
    #[default]
    Bf16,
    /// e4m3 with an f32 scale for each output, made from bf16 when the model is loaded; inputs of
    /// their products get a scale for each row.
    Fp8,
}

impl Precision {
    pub fn bytes(self) -> u64 {
        match self {
            Precision::Bf16 => 2,
            Precision::Fp8 => 1,
        }
    }
}

pub struct DeviceWeights {
    pub config: ModelConfig,
    pub precision: Precision,
    /// `vocabulary x hidden`
    pub embedding: DevicePointer,
    pub layers: Vec<DeviceLayer>,
    /// f32, `hidden`
    pub norm: DevicePointer,
    /// `vocabulary x hidden`
    pub lm_head: DevicePointer,
    /// f32, `context x head_dim / 2`
    pub cosines: DevicePointer,
    pub sines: DevicePointer,
    /// Owns everything above.
    _memory: DeviceMemory,
}

pub struct DeviceLayer {
    /// In the order of [`Group::ALL`].
    groups: [DevicePointer; 4],
    /// f32, one for each output; for fp8 alone.
    scales: [DevicePointer; 4],
    /// f32, `hidden`
    pub input_norm: DevicePointer,
    pub post_attention_norm: DevicePointer,
    /// f32, of the outputs of q, k and v; 0 where none has one.
    biases: DevicePointer,
    /// f32, `head_dim`; 0 where heads are not normalised.
    query_norm: DevicePointer,
    key_norm: DevicePointer,
}

impl DeviceLayer {
    /// `eps`: of the norms.
    pub fn heads(&self, eps: f32) -> Heads {
        let Self { biases, query_norm, key_norm, .. } = *self;
        Heads { biases, query_norm, key_norm, eps, unused: 0 }
    }

    pub fn group(&self, group: Group) -> DevicePointer {
        self.groups[group as usize]
    }

    /// 0 unless the weights are fp8.
    pub fn scales(&self, group: Group) -> DevicePointer {
        self.scales[group as usize]
    }
}

/// Widest row that the norm keeps in registers.
const MAX_HIDDEN: u32 = 8192;

impl DeviceWeights {
    /// Copies a loaded model.
    pub fn load(
        device: &Arc<Device>,
        stream: &Stream,
        kernels: &Kernels,
        weights: &ModelWeights,
    ) -> Result<Self, CudaError> {
        weights.check_shapes().map_err(CudaError::Model)?;
        let placed = Self::place(device, stream, kernels, &weights.config)?;
        let bf16 = Bf16Group::new(device, stream, kernels, &weights.config.spec)?;
        let mut staging = Staging::new(device)?;
        let mut copy = |to: DevicePointer, matrices: &[&Matrix]| {
            let mut next = to;
            let mut sources = Vec::with_capacity(matrices.len());
            for matrix in matrices {
                let from: &[u8] = bytemuck::cast_slice(&matrix.data);
                sources.push(Source { to: next, from });
                next += from.len() as u64;
            }
            // SAFETY: `place` reserved room for the shapes that were checked, and nobody reads it yet.
            unsafe { staging.upload(&sources) }
        };
        copy(placed.embedding, &[&weights.embedding])?;
        if let Some(head) = &weights.lm_head {
            copy(placed.lm_head, &[head])?;
        }
        for (to, layer) in placed.layers.iter().zip(&weights.layers) {
            for group in Group::ALL {
                let parts: Vec<&Matrix> =
                    group.linears().iter().map(|&linear| layer.linear(linear)).collect();
                bf16.fill(to, group, |place| copy(place, &parts))?;
            }
            // SAFETY: as above.
            unsafe { stream.upload(to.input_norm, &layer.input_norm) }?;
            // SAFETY: as above.
            unsafe { stream.upload(to.post_attention_norm, &layer.post_attention_norm) }?;
            let spec = &weights.config.spec;
            for linear in Group::Qkv.linears() {
                let Some(bias) = &layer.biases[linear.index()] else { continue };
                let first = u64::from(Group::Qkv.first_output(spec, *linear));
                // SAFETY: as above; the memory is zero where a linear has no bias.
                unsafe { stream.upload(to.biases + first * 4, bias) }?;
            }
            if let Some(norms) = &layer.head_norms {
                // SAFETY: as above.
                unsafe { stream.upload(to.query_norm, &norms.query) }?;
                // SAFETY: as above.
                unsafe { stream.upload(to.key_norm, &norms.key) }?;
            }
        }
        // SAFETY: as above.
        unsafe { stream.upload(placed.norm, &weights.norm) }?;
        stream.synchronize()?;
        Ok(placed)
    }

    /// Seeded random weights of a model's shapes, for measuring without its files. Values are of the
    /// size that keeps activations in range; biases are 0.
    pub fn dummy(
        device: &Arc<Device>,
        stream: &Stream,
        kernels: &Kernels,
        config: &ModelConfig,
        seed: u64,
    ) -> Result<Self, CudaError> {
        let placed = Self::place(device, stream, kernels, config)?;
        let spec = &config.spec;
        let bf16 = Bf16Group::new(device, stream, kernels, spec)?;
        let (vocabulary, hidden) = (u64::from(spec.vocab_size), u64::from(spec.hidden_size));
        let mut next_seed = seed << 32;
        let mut fill = |out: DevicePointer, count: u64, inputs: u64| {
            next_seed = next_seed.wrapping_add(count);
            let scale = (3.0 / inputs as f32).sqrt();
            let arguments = Fill { out, count, seed: next_seed, scale };
            let blocks = kernels.blocks(u32::MAX, 16);
            // SAFETY: `place` reserved room for this many values.
            unsafe { kernels.launch(stream, Start::Afterwards, blocks, &arguments) }
        };
        fill(placed.embedding, vocabulary * hidden, 3)?;
        if !config.tie_word_embeddings {
            fill(placed.lm_head, vocabulary * hidden, hidden)?;
        }
        let ones = vec![1f32; hidden as usize];
        for layer in &placed.layers {
            for group in Group::ALL {
                let (outputs, inputs) = group.shape(spec);
                let inputs = u64::from(inputs);
                bf16.fill(layer, group, |place| fill(place, u64::from(outputs) * inputs, inputs))?;
            }
            // SAFETY: `place` reserved room for them.
            unsafe { stream.upload(layer.input_norm, &ones) }?;
            // SAFETY: as above.
            unsafe { stream.upload(layer.post_attention_norm, &ones) }?;
            if config.head_norms {
                let ones = &ones[..spec.head_dim as usize];
                // SAFETY: as above.
                unsafe { stream.upload(layer.query_norm, ones) }?;
                // SAFETY: as above.
                unsafe { stream.upload(layer.key_norm, ones) }?;
            }
        }
        // SAFETY: as above.
        unsafe { stream.upload(placed.norm, &ones) }?;
        stream.synchronize()?;
        Ok(placed)
    }

    /// Allocates everything, and fills in what depends on the configuration alone.
    fn place(
        device: &Arc<Device>,
        stream: &Stream,
        kernels: &Kernels,
        config: &ModelConfig,
    ) -> Result<Self, CudaError> {
        check_config(config)?;
        let precision = kernels.target().precision;
        // Once without memory, to learn how much is needed.
        let mut dry = Cursor { next: 0 };
        Addresses::take(&mut dry, config, precision);
        let memory = device.allocate("device memory for the model", dry.next)?;
        let addresses = Addresses::take(&mut Cursor { next: memory.address() }, config, precision);
        let (head_dim, context) = (config.spec.head_dim, config.spec.context_length);
        let rope = config.rope.table(head_dim as usize, context as usize);
        // SAFETY: `take` reserved room for them.
        unsafe { stream.upload(addresses.cosines, &rope.cosines) }?;
        // SAFETY: as above.
        unsafe { stream.upload(addresses.sines, &rope.sines) }?;
        stream.synchronize()?;
        Ok(Self {
            config: config.clone(),
            precision,
            embedding: addresses.embedding,
            layers: addresses.layers,
            norm: addresses.norm,
            lm_head: addresses.lm_head,
            cosines: addresses.cosines,
            sines: addresses.sines,
            _memory: memory,
        })
    }
}

/// Where a group's weights are put as bf16: their own place, or one from which they are quantised.
struct Bf16Group<'a> {
    stream: &'a Stream,
    kernels: &'a Kernels,
    spec: &'a BaseModelSpec,
    /// Room for the largest group; None: weights stay bf16.
    detour: Option<DeviceMemory>,
}

impl<'a> Bf16Group<'a> {
    fn new(
        device: &Arc<Device>,
        stream: &'a Stream,
        kernels: &'a Kernels,
        spec: &'a BaseModelSpec,
    ) -> Result<Self, CudaError> {
        let sizes = Group::ALL.map(|group| {
            let (outputs, inputs) = group.shape(spec);
            u64::from(outputs) * u64::from(inputs) * 2
        });
        let detour = match kernels.target().precision {
            Precision::Bf16 => None,
            Precision::Fp8 => {
                let bytes = sizes.into_iter().max().unwrap_or(0);
                Some(device.allocate("device memory for quantising", bytes)?)
            }
        };
        Ok(Self { stream, kernels, spec, detour })
    }

    fn fill(
        &self,
        layer: &DeviceLayer,
        group: Group,
        put: impl FnOnce(DevicePointer) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let Some(detour) = &self.detour else { return put(layer.group(group)) };
        // The group before is quantised: what is put next may come by another stream.
        self.stream.synchronize()?;
        put(detour.address())?;
        let (outputs, inputs) = group.shape(self.spec);
        let quantise = Quantise {
            step: 0,
            x: detour.address(),
            out: layer.group(group),
            scales: layer.scales(group),
            rows: outputs,
            width: inputs,
        };
        let blocks = self.kernels.blocks(outputs, 8);
        // SAFETY: the group's place and scales have room for its shape.
        unsafe { self.kernels.launch(self.stream, Start::Afterwards, blocks, &quantise) }
    }
}

impl Drop for Bf16Group<'_> {
    fn drop(&mut self) {
        // The last group may still be on its way.
        let _ = self.stream.synchronize();
    }
}

struct Addresses {
    embedding: DevicePointer,
    lm_head: DevicePointer,
    layers: Vec<DeviceLayer>,
    norm: DevicePointer,
    cosines: DevicePointer,
    sines: DevicePointer,
}

impl Addresses {
    fn take(cursor: &mut Cursor, config: &ModelConfig, precision: Precision) -> Self {
        let spec = &config.spec;
        let hidden = u64::from(spec.hidden_size);
        let table = u64::from(spec.vocab_size) * hidden * 2;
        let angles = u64::from(spec.context_length) * u64::from(spec.head_dim) / 2 * 4;
        let has_biases = !config.biased.is_empty();
        let (qkv, head_dim) = (u64::from(Group::Qkv.shape(spec).0), u64::from(spec.head_dim));
        let embedding = cursor.take(table);
        let layers = (0..spec.num_layers)
            .map(|_| DeviceLayer {
                groups: Group::ALL.map(|group| {
                    let (outputs, inputs) = group.shape(spec);
                    cursor.take(u64::from(outputs) * u64::from(inputs) * precision.bytes())
                }),
                scales: Group::ALL.map(|group| match precision {
                    Precision::Bf16 => 0,
                    Precision::Fp8 => cursor.take(u64::from(group.shape(spec).0) * 4),
                }),
                input_norm: cursor.take(hidden * 4),
                post_attention_norm: cursor.take(hidden * 4),
                biases: if has_biases { cursor.take(qkv * 4) } else { 0 },
                query_norm: if config.head_norms { cursor.take(head_dim * 4) } else { 0 },
                key_norm: if config.head_norms { cursor.take(head_dim * 4) } else { 0 },
            })
            .collect();
        Self {
            embedding,
            layers,
            lm_head: if config.tie_word_embeddings { embedding } else { cursor.take(table) },
            norm: cursor.take(hidden * 4),
            cosines: cursor.take(angles),
            sines: cursor.take(angles),
        }
    }
}

/// What the kernels ask of a model.
pub fn check_config(config: &ModelConfig) -> Result<(), CudaError> {
    let refuse = |what: &str| Err(CudaError::Model(what.into()));
    let spec = &config.spec;
    if config.biased.iter().any(|linear| !Group::Qkv.linears().contains(linear)) {
        return refuse("linears other than q, k and v have biases; use --device cpu");
    }
    if spec.num_kv_heads == 0 || !spec.num_heads.is_multiple_of(spec.num_kv_heads) {
        return refuse("its query heads are no multiple of its key heads");
    }
    if spec.num_heads / spec.num_kv_heads > 8 {
        return refuse("more than 8 query heads share a key head");
    }
    if spec.hidden_size > MAX_HIDDEN {
        return refuse("its rows are wider than 8192");
    }
    let queries = spec.num_heads * spec.head_dim;
    let widths = [spec.hidden_size, spec.intermediate_size, queries];
    if widths.iter().any(|w| *w == 0 || !w.is_multiple_of(64)) {
        return refuse("its sizes are not multiples of 64");
    }
    Ok(())
}
