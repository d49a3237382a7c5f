//! The base model, packed for the kernels.

use super::element::Element;
use super::pack::Packed;
use crate::backend::BackendError;
use crate::backend::group::Group;
use crate::model::{HeadNorms, LayerWeights, Matrix, ModelWeights, RopeTable};
use lorikeet_contract::{BaseModelSpec, Linear};

pub struct PackedLayer<T> {
    /// In the order of [`Group::ALL`].
    groups: [Packed<T>; 4],
    /// As long as the group's outputs, zero where a linear has none; None where no linear has.
    biases: [Option<Vec<f32>>; 4],
    pub input_norm: Vec<f32>,
    pub post_attention_norm: Vec<f32>,
    pub head_norms: Option<HeadNorms>,
    /// Positions that a query sees, its own among them; None: all before it.
    pub window: Option<usize>,
}

pub struct PackedModel<T> {
    pub spec: BaseModelSpec,
    pub rms_norm_eps: f32,
    pub layers: Vec<PackedLayer<T>>,
    pub norm: Vec<f32>,
    pub lm_head: Packed<T>,
    /// None when tied: rows are then read out of `lm_head`.
    embedding: Option<Packed<T>>,
    pub rope: RopeTable,
}

impl<T: Element> PackedLayer<T> {
    pub fn group(&self, group: Group) -> &Packed<T> {
        &self.groups[group as usize]
    }

    pub fn bias(&self, group: Group) -> Option<&[f32]> {
        self.biases[group as usize].as_deref()
    }
}

impl<T: Element> PackedModel<T> {
    pub fn new(weights: &ModelWeights, threads: usize) -> Result<Self, BackendError> {
        check(weights)?;
        let config = &weights.config;
        let spec = config.spec.clone();
        let head = weights.lm_head.as_ref().unwrap_or(&weights.embedding);
        let untied = weights.lm_head.is_some();
        let mut layers = pack_layers(&weights.layers, threads);
        for (index, layer) in layers.iter_mut().enumerate() {
            layer.window = config.window(index);
        }
        Ok(Self {
            rms_norm_eps: config.rms_norm_eps,
            layers,
            norm: weights.norm.clone(),
            lm_head: pack(&[head]),
            embedding: untied.then(|| pack(&[&weights.embedding])),
            rope: config.rope.table(spec.head_dim as usize, spec.context_length as usize),
            spec,
        })
    }

    pub fn hidden(&self) -> usize {
        self.spec.hidden_size as usize
    }

    pub fn intermediate(&self) -> usize {
        self.spec.intermediate_size as usize
    }

    pub fn head_dim(&self) -> usize {
        self.spec.head_dim as usize
    }

    pub fn kv_heads(&self) -> usize {
        self.spec.num_kv_heads as usize
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        (self.spec.num_heads * self.spec.head_dim) as usize
    }

    /// The embedding of a token below the vocabulary's size.
    pub fn embed(&self, token: u32, out: &mut [f32]) {
        let table = self.embedding.as_ref().unwrap_or(&self.lm_head);
        for (out, value) in out.iter_mut().zip(table.output(token as usize)) {
            *out = value;
        }
    }
}

fn pack_layers<T: Element>(layers: &[LayerWeights], threads: usize) -> Vec<PackedLayer<T>> {
    let share = layers.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = layers
            .chunks(share)
            .map(|part| scope.spawn(|| part.iter().map(pack_layer).collect::<Vec<_>>()))
            .collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, Vec<PackedLayer<T>>>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.into_iter().flat_map(join).collect()
    })
}

fn pack_layer<T: Element>(layer: &LayerWeights) -> PackedLayer<T> {
    PackedLayer {
        groups: Group::ALL.map(|group| {
            let parts: Vec<&Matrix> = group.linears().iter().map(|&l| layer.linear(l)).collect();
            pack(&parts)
        }),
        biases: Group::ALL.map(|group| bias(layer, group)),
        input_norm: layer.input_norm.clone(),
        post_attention_norm: layer.post_attention_norm.clone(),
        head_norms: layer.head_norms.clone(),
        window: None,
    }
}

fn bias(layer: &LayerWeights, group: Group) -> Option<Vec<f32>> {
    let of = |linear: Linear| layer.biases[linear.index()].as_ref();
    let linears = group.linears();
    linears.iter().any(|&linear| of(linear).is_some()).then(|| {
        let part = |&linear: &Linear| match of(linear) {
            Some(bias) => bias.clone(),
            None => vec![0.0; layer.linear(linear).rows],
        };
        linears.iter().flat_map(part).collect()
    })
}

/// Matrices of the same input, one below the other.
fn pack<T: Element>(parts: &[&Matrix]) -> Packed<T> {
    let outputs = parts.iter().map(|m| m.rows).sum();
    let mut packed = Packed::zeros(outputs, parts[0].cols);
    let rows = parts.iter().flat_map(|m| m.data.chunks_exact(m.cols));
    for (output, row) in rows.enumerate() {
        packed.set_output(output, row.iter().map(|w| w.to_f32()));
    }
    packed
}

fn check(weights: &ModelWeights) -> Result<(), BackendError> {
    let spec = &weights.config.spec;
    let refuse =
        |what: String| Err(BackendError::Device(format!("the model does not fit: {what}")));
    let sizes = [spec.hidden_size, spec.intermediate_size, spec.head_dim, spec.num_kv_heads];
    if sizes.contains(&0) || !spec.num_heads.is_multiple_of(spec.num_kv_heads) {
        return refuse(
            "a size is zero, or its query heads are no multiple of its key heads".into(),
        );
    }
    if [spec.hidden_size, spec.intermediate_size, spec.head_dim].iter().any(|n| n % 2 != 0) {
        return refuse("a size is odd, which the kernels do not take".into());
    }
    weights.check_shapes().or_else(refuse)
}
