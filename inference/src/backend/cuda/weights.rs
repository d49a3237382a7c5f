//! The base model in device memory: linears that read the same input stand one below the other,
//! row-major as cublasLt takes them.

use super::device::{Device, DeviceMemory, DevicePointer, Stream};
use super::error::CudaError;
use super::kernels::{Fill, Kernels};
use super::layout::Group;
use crate::model::{Matrix, ModelConfig, ModelWeights};
use std::sync::Arc;

pub struct DeviceWeights {
    pub config: ModelConfig,
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
    /// f32, `hidden`
    pub input_norm: DevicePointer,
    pub post_attention_norm: DevicePointer,
}

impl DeviceLayer {
    pub fn group(&self, group: Group) -> DevicePointer {
        self.groups[group as usize]
    }
}

/// Hands out addresses of one allocation, in order.
struct Cursor {
    next: DevicePointer,
}

const ALIGN: u64 = 256;

impl Cursor {
    fn take(&mut self, bytes: u64) -> DevicePointer {
        let address = self.next;
        self.next += bytes.next_multiple_of(ALIGN);
        address
    }
}

impl DeviceWeights {
    /// Copies a loaded model.
    pub fn load(
        device: &Arc<Device>,
        stream: &Stream,
        weights: &ModelWeights,
    ) -> Result<Self, CudaError> {
        weights.check_shapes().map_err(CudaError::Model)?;
        let placed = Self::place(device, stream, &weights.config)?;
        let copy = |to: DevicePointer, matrices: &[&Matrix]| {
            let mut at = to;
            for matrix in matrices {
                // SAFETY: `place` reserved room for the shapes that were checked.
                unsafe { stream.upload(at, &matrix.data) }?;
                at += matrix.data.len() as u64 * 2;
            }
            Ok::<(), CudaError>(())
        };
        copy(placed.embedding, &[&weights.embedding])?;
        if let Some(head) = &weights.lm_head {
            copy(placed.lm_head, &[head])?;
        }
        for (to, layer) in placed.layers.iter().zip(&weights.layers) {
            for group in Group::ALL {
                let parts: Vec<&Matrix> =
                    group.linears().iter().map(|&linear| layer.linear(linear)).collect();
                copy(to.group(group), &parts)?;
            }
            // SAFETY: as above.
            unsafe { stream.upload(to.input_norm, &layer.input_norm) }?;
            // SAFETY: as above.
            unsafe { stream.upload(to.post_attention_norm, &layer.post_attention_norm) }?;
        }
        // SAFETY: as above.
        unsafe { stream.upload(placed.norm, &weights.norm) }?;
        stream.synchronize()?;
        Ok(placed)
    }

    /// Seeded random weights of a model's shapes, for measuring without its files. Values are of the
    /// size that keeps activations in range.
    pub fn dummy(
        device: &Arc<Device>,
        stream: &Stream,
        kernels: &Kernels,
        config: &ModelConfig,
        seed: u64,
    ) -> Result<Self, CudaError> {
        let placed = Self::place(device, stream, config)?;
        let spec = &config.spec;
        let (vocabulary, hidden) = (u64::from(spec.vocab_size), u64::from(spec.hidden_size));
        let mut next_seed = seed << 32;
        let mut fill = |out: DevicePointer, count: u64, inputs: u64| {
            next_seed = next_seed.wrapping_add(count);
            let scale = (3.0 / inputs as f32).sqrt();
            let arguments = Fill { out, count, seed: next_seed, scale };
            let blocks = kernels.blocks(u32::MAX, 16);
            // SAFETY: `place` reserved room for this many values.
            unsafe { kernels.launch(stream, blocks, &arguments) }
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
                fill(layer.group(group), u64::from(outputs) * inputs, inputs)?;
            }
            // SAFETY: `place` reserved room for them.
            unsafe { stream.upload(layer.input_norm, &ones) }?;
            // SAFETY: as above.
            unsafe { stream.upload(layer.post_attention_norm, &ones) }?;
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
        config: &ModelConfig,
    ) -> Result<Self, CudaError> {
        check_config(config)?;
        // Once without memory, to learn how much is needed.
        let mut dry = Cursor { next: 0 };
        Addresses::take(&mut dry, config);
        let memory = device.allocate("device memory for the model", dry.next)?;
        let addresses = Addresses::take(&mut Cursor { next: memory.address() }, config);
        let (head_dim, context) = (config.spec.head_dim, config.spec.context_length);
        let rope = config.rope.table(head_dim as usize, context as usize);
        // SAFETY: `take` reserved room for them.
        unsafe { stream.upload(addresses.cosines, &rope.cosines) }?;
        // SAFETY: as above.
        unsafe { stream.upload(addresses.sines, &rope.sines) }?;
        stream.synchronize()?;
        Ok(Self {
            config: config.clone(),
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

struct Addresses {
    embedding: DevicePointer,
    lm_head: DevicePointer,
    layers: Vec<DeviceLayer>,
    norm: DevicePointer,
    cosines: DevicePointer,
    sines: DevicePointer,
}

impl Addresses {
    fn take(cursor: &mut Cursor, config: &ModelConfig) -> Self {
        let spec = &config.spec;
        let hidden = u64::from(spec.hidden_size);
        let table = u64::from(spec.vocab_size) * hidden * 2;
        let angles = u64::from(spec.context_length) * u64::from(spec.head_dim) / 2 * 4;
        let embedding = cursor.take(table);
        let layers = (0..spec.num_layers)
            .map(|_| DeviceLayer {
                groups: Group::ALL.map(|group| {
                    let (outputs, inputs) = group.shape(spec);
                    cursor.take(u64::from(outputs) * u64::from(inputs) * 2)
                }),
                input_norm: cursor.take(hidden * 4),
                post_attention_norm: cursor.take(hidden * 4),
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
    if !config.biased.is_empty() {
        return refuse("its linears have biases; use --device cpu");
    }
    if config.head_norms {
        return refuse("its heads are normalised; use --device cpu");
    }
    if config.sliding_window.is_some() {
        return refuse("it has a sliding window; use --device cpu");
    }
    if spec.num_kv_heads == 0 || !spec.num_heads.is_multiple_of(spec.num_kv_heads) {
        return refuse("its query heads are no multiple of its key heads");
    }
    if spec.num_heads / spec.num_kv_heads > super::layout::TILE_ROWS {
        return refuse("more than 16 query heads share a key head");
    }
    let queries = spec.num_heads * spec.head_dim;
    let widths = [spec.hidden_size, spec.intermediate_size, queries];
    if widths.iter().any(|w| *w == 0 || !w.is_multiple_of(64)) {
        return refuse("its sizes are not multiples of 64");
    }
    Ok(())
}
