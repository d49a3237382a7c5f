//! From a file format's tensors to [`ModelWeights`]. A format only has to hand out tensors by their
//! Hugging Face names; which ones a model has, and in which shape, is decided here.

use super::weights::{HeadNorms, LayerWeights, Matrix, ModelConfig, ModelWeights};
use super::{LoadProgress, ModelError, Values, parallel};
use lorikeet_contract::Linear;
use std::collections::HashSet;
use std::path::Path;

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const NORM: &str = "model.norm.weight";
pub(super) const LM_HEAD: &str = "lm_head.weight";

/// More layers than any model has; bounds what a damaged configuration can ask for.
const MAX_LAYERS: u32 = 1024;

/// Tensors by their Hugging Face names.
pub(super) trait TensorSource: Sync {
    /// For messages.
    fn path(&self) -> &Path;

    /// Every tensor there is. One that no decoder here has keeps the file's name.
    fn names(&self) -> Vec<String>;

    /// The values in row-major order, each rounded to the nearest bf16 (ties to even), in rotate-half
    /// order. An error if the tensor is missing or has another shape.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Values, ModelError>;
}

pub(super) fn linear_name(layer: u32, linear: Linear) -> String {
    format!("model.layers.{layer}.{}.weight", linear.path())
}

pub(super) fn bias_name(layer: u32, linear: Linear) -> String {
    format!("model.layers.{layer}.{}.bias", linear.path())
}

pub(super) fn query_norm_name(layer: u32) -> String {
    format!("model.layers.{layer}.self_attn.q_norm.weight")
}

pub(super) fn key_norm_name(layer: u32) -> String {
    format!("model.layers.{layer}.self_attn.k_norm.weight")
}

pub(super) fn input_norm_name(layer: u32) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

pub(super) fn post_attention_norm_name(layer: u32) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

/// Reads every tensor, on all cores, and sets the configuration's `weights_digest` from them.
///
/// A tensor that this decoder has no use for is refused by name: ignoring it would serve another model.
pub(super) fn assemble(
    config: ModelConfig,
    source: &impl TensorSource,
    progress: &LoadProgress,
) -> Result<ModelWeights, ModelError> {
    check(&config).map_err(|reason| ModelError::malformed(source.path(), reason))?;
    let wanted = config.tensor_shapes();
    let known: HashSet<&str> = wanted.iter().map(|t| t.name.as_str()).collect();
    for name in source.names() {
        let ignored = config.tie_word_embeddings && name == LM_HEAD;
        if !known.contains(name.as_str()) && !ignored {
            return Err(ModelError::unsupported(source.path(), format!("the tensor {name}")));
        }
    }
    progress.expect(wanted.iter().map(TensorShape::weights).sum());
    let tensors = parallel::map(wanted.len(), |i| {
        let read = source.read(&wanted[i].name, &wanted[i].shape)?;
        progress.add(wanted[i].weights());
        Ok(read)
    })?;
    let mut weights = arrange(config, wanted.into_iter().zip(tensors));
    weights.config.spec.weights_digest = weights.digest();
    Ok(weights)
}

/// What the arithmetic of later code relies on.
fn check(config: &ModelConfig) -> Result<(), String> {
    let spec = &config.spec;
    let counts = [
        ("hidden size", spec.hidden_size),
        ("MLP size", spec.intermediate_size),
        ("number of layers", spec.num_layers),
        ("number of attention heads", spec.num_heads),
        ("number of key/value heads", spec.num_kv_heads),
        ("head size", spec.head_dim),
        ("vocabulary size", spec.vocab_size),
        ("context length", spec.context_length),
    ];
    if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
        return Err(format!("the {what} is 0"));
    }
    if spec.num_layers > MAX_LAYERS {
        return Err(format!("{} layers", spec.num_layers));
    }
    if !spec.num_heads.is_multiple_of(spec.num_kv_heads) {
        return Err(format!(
            "{} attention heads do not divide into {} key/value heads",
            spec.num_heads, spec.num_kv_heads
        ));
    }
    if !spec.head_dim.is_multiple_of(2) {
        return Err(format!("rotary embedding needs an even head size, not {}", spec.head_dim));
    }
    if spec.num_heads.checked_mul(spec.head_dim).is_none() {
        return Err(format!("{} heads of {}", spec.num_heads, spec.head_dim));
    }
    if config.sliding_window.as_ref().is_some_and(|window| window.positions == 0) {
        return Err("the sliding window is 0".into());
    }
    config.rope.check(spec.head_dim)
}

/// A tensor of a model, by its Hugging Face name.
#[derive(Debug, Clone)]
pub struct TensorShape {
    pub name: String,
    /// `out x in` of a linear, `vocabulary x hidden` of a table, one number of anything else.
    pub shape: Vec<usize>,
}

impl TensorShape {
    pub fn weights(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }
}

impl ModelConfig {
    /// Every tensor of the model, in the order in which [`arrange`] takes them.
    pub fn tensor_shapes(&self) -> Vec<TensorShape> {
        let spec = &self.spec;
        let (vocab, hidden) = (spec.vocab_size as usize, spec.hidden_size as usize);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.push(TensorShape { name, shape: shape.to_vec() });
        };
        add(EMBEDDING.into(), &[vocab, hidden]);
        add(NORM.into(), &[hidden]);
        if !self.tie_word_embeddings {
            add(LM_HEAD.into(), &[vocab, hidden]);
        }
        for layer in 0..spec.num_layers {
            for linear in Linear::ALL {
                let (rows, cols) = spec.shape(linear);
                add(linear_name(layer, linear), &[rows, cols]);
            }
            for &linear in &self.biased {
                add(bias_name(layer, linear), &[spec.shape(linear).0]);
            }
            if self.head_norms {
                let head_dim = spec.head_dim as usize;
                add(query_norm_name(layer), &[head_dim]);
                add(key_norm_name(layer), &[head_dim]);
            }
            add(input_norm_name(layer), &[hidden]);
            add(post_attention_norm_name(layer), &[hidden]);
        }
        tensors
    }
}

fn arrange(
    config: ModelConfig,
    tensors: impl Iterator<Item = (TensorShape, Values)>,
) -> ModelWeights {
    let mut tensors = tensors;
    let mut next = || tensors.next().expect("one tensor was read for each one wanted");
    let matrix = |(wanted, data): (TensorShape, Values)| Matrix {
        rows: wanted.shape[0],
        cols: wanted.shape[1],
        data,
    };
    let vector = |(_, data): (TensorShape, Values)| -> Vec<f32> {
        data.iter().map(|v| v.to_f32()).collect()
    };
    let embedding = matrix(next());
    let norm = vector(next());
    let lm_head = (!config.tie_word_embeddings).then(|| matrix(next()));
    let layers = (0..config.spec.num_layers)
        .map(|_| LayerWeights {
            linears: Linear::ALL.map(|_| matrix(next())),
            biases: Linear::ALL
                .map(|linear| config.biased.contains(&linear).then(|| vector(next()))),
            head_norms: config
                .head_norms
                .then(|| HeadNorms { query: vector(next()), key: vector(next()) }),
            input_norm: vector(next()),
            post_attention_norm: vector(next()),
        })
        .collect();
    ModelWeights { config, embedding, layers, norm, lm_head }
}
