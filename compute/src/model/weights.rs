//! A decoder's weights as loaded, in Hugging Face's order (rotate-half rope), before any backend
//! packs them for its kernels.

use super::assemble::{
    EMBEDDING, LM_HEAD, NORM, bias_name, input_norm_name, key_norm_name, linear_name,
    post_attention_norm_name, query_norm_name,
};
use super::{Rope, Values, parallel};
use half::bf16;
use lorikeet_contract::digest::{CHUNK_BYTES, leaf};
use lorikeet_contract::{BaseModelSpec, ContentDigest, Linear, WeightsDigest};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;

/// What one decoder needs to know to be any of the families that are served: Llama, Mistral, Qwen2
/// and Qwen3 differ in nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub spec: BaseModelSpec,
    pub rms_norm_eps: f32,
    pub rope: Rope,
    /// The output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// The linears that add a bias, in every layer, in the order of [`Linear::ALL`].
    pub biased: Vec<Linear>,
    /// Every query and key head is normalised before it is rotated.
    pub head_norms: bool,
    pub sliding_window: Option<SlidingWindow>,
    pub bos_token: Option<u32>,
    /// Tokens that end an answer, in ascending order.
    pub eos_tokens: Vec<u32>,
}

/// Attention to the latest positions only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Positions that a query sees, its own among them.
    pub positions: u32,
    /// One per layer: whether it has the window; the others see everything.
    pub layers: Vec<bool>,
}

/// A row-major matrix, `rows x cols`; a linear layer's weight is `out x in`.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Values,
}

/// Biases and the weights of norms are f32 that bf16 holds exactly.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// In the order of [`Linear::ALL`].
    pub linears: [Matrix; 7],
    /// As long as the linear's output; None where it has none.
    pub biases: [Option<Vec<f32>>; 7],
    pub input_norm: Vec<f32>,
    pub post_attention_norm: Vec<f32>,
    pub head_norms: Option<HeadNorms>,
}

/// Weights of the norms of single heads, `head_dim` each.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadNorms {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
}

#[derive(Debug, Clone)]
pub struct ModelWeights {
    pub config: ModelConfig,
    /// `vocabulary x hidden`
    pub embedding: Matrix,
    pub layers: Vec<LayerWeights>,
    pub norm: Vec<f32>,
    /// `vocabulary x hidden`; None when tied to the embedding.
    pub lm_head: Option<Matrix>,
}

impl ModelConfig {
    /// The first Llama's decoder: no biases, no scaling, no window, an output layer of its own.
    pub fn plain(spec: BaseModelSpec) -> Self {
        Self {
            spec,
            rms_norm_eps: 1e-5,
            rope: Rope::plain(10_000.0),
            tie_word_embeddings: false,
            biased: Vec::new(),
            head_norms: false,
            sliding_window: None,
            bos_token: None,
            eos_tokens: Vec::new(),
        }
    }

    /// Positions that a query of this layer sees, its own among them; None: all before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let window = self.sliding_window.as_ref()?;
        window.layers.get(layer).is_some_and(|has| *has).then_some(window.positions as usize)
    }
}

impl LayerWeights {
    pub fn linear(&self, linear: Linear) -> &Matrix {
        &self.linears[linear.index()]
    }
}

impl ModelWeights {
    /// Every tensor under its Hugging Face name, in name order.
    pub fn tensors(&self) -> BTreeMap<String, Cow<'_, [bf16]>> {
        let vector = |values: &[f32]| values.iter().map(|v| bf16::from_f32(*v)).collect();
        let mut tensors = BTreeMap::new();
        tensors.insert(EMBEDDING.into(), Cow::Borrowed(&*self.embedding.data));
        tensors.insert(NORM.into(), Cow::Owned(vector(&self.norm)));
        if let Some(lm_head) = &self.lm_head {
            tensors.insert(LM_HEAD.into(), Cow::Borrowed(&*lm_head.data));
        }
        for (index, layer) in (0..).zip(&self.layers) {
            for linear in Linear::ALL {
                let data = Cow::Borrowed(&*layer.linear(linear).data);
                tensors.insert(linear_name(index, linear), data);
                if let Some(bias) = &layer.biases[linear.index()] {
                    tensors.insert(bias_name(index, linear), Cow::Owned(vector(bias)));
                }
            }
            let norms = [
                (input_norm_name(index), &layer.input_norm),
                (post_attention_norm_name(index), &layer.post_attention_norm),
            ];
            let head_norms = layer.head_norms.iter().flat_map(|norms| {
                [(query_norm_name(index), &norms.query), (key_norm_name(index), &norms.key)]
            });
            for (name, norm) in norms.into_iter().chain(head_norms) {
                tensors.insert(name, Cow::Owned(vector(norm)));
            }
        }
        tensors
    }

    /// Whether every tensor has the shape that the configuration says: what backends rely on. An
    /// error names the first that has not.
    pub fn check_shapes(&self) -> Result<(), String> {
        let spec = &self.config.spec;
        let hidden = spec.hidden_size as usize;
        let matrix = |name: &str, m: &Matrix, shape: (usize, usize)| {
            let is = (m.rows, m.cols) == shape && m.data.len() == shape.0 * shape.1;
            if is { Ok(()) } else { Err(format!("{name} is not {} x {}", shape.0, shape.1)) }
        };
        let vector = |name: &str, v: &[f32], len: usize| {
            if v.len() == len { Ok(()) } else { Err(format!("{name} is not of length {len}")) }
        };
        let table = (spec.vocab_size as usize, hidden);
        matrix(EMBEDDING, &self.embedding, table)?;
        if self.lm_head.is_none() != self.config.tie_word_embeddings {
            return Err(format!("{LM_HEAD} and tie_word_embeddings do not agree"));
        }
        self.lm_head.iter().try_for_each(|head| matrix(LM_HEAD, head, table))?;
        vector(NORM, &self.norm, hidden)?;
        if self.layers.len() != spec.num_layers as usize {
            return Err(format!("{} layers should be {}", self.layers.len(), spec.num_layers));
        }
        for (index, layer) in (0..).zip(&self.layers) {
            for linear in Linear::ALL {
                let shape = spec.shape(linear);
                matrix(&linear_name(index, linear), layer.linear(linear), shape)?;
                let bias = layer.biases[linear.index()].as_deref();
                let name = bias_name(index, linear);
                if bias.is_some() != self.config.biased.contains(&linear) {
                    return Err(format!("{name} and the configuration do not agree"));
                }
                bias.map_or(Ok(()), |bias| vector(&name, bias, shape.0))?;
            }
            vector(&input_norm_name(index), &layer.input_norm, hidden)?;
            vector(&post_attention_norm_name(index), &layer.post_attention_norm, hidden)?;
            if layer.head_norms.is_some() != self.config.head_norms {
                return Err(format!(
                    "layer {index}'s head norms and the configuration do not agree"
                ));
            }
            if let Some(norms) = &layer.head_norms {
                vector(&query_norm_name(index), &norms.query, spec.head_dim as usize)?;
                vector(&key_norm_name(index), &norms.key, spec.head_dim as usize)?;
            }
        }
        Ok(())
    }

    /// Content hash of name, then little-endian bf16 bytes, of each tensor in name order. It does not
    /// depend on the file format that the weights came from.
    pub fn digest(&self) -> WeightsDigest {
        let tensors = self.tensors();
        let pieces: Vec<&[u8]> = tensors
            .iter()
            .flat_map(|(name, data)| [name.as_bytes(), bytemuck::cast_slice(data)])
            .collect();
        let total: usize = pieces.iter().map(|p| p.len()).sum();
        let leaves = parallel::map(total.div_ceil(CHUNK_BYTES), |i| {
            Ok::<_, Infallible>(leaf(&range(&pieces, i * CHUNK_BYTES)))
        });
        let Ok(leaves) = leaves;
        ContentDigest::from_leaves(leaves, total as u64).into()
    }
}

/// At most [`CHUNK_BYTES`] bytes of the concatenated pieces, from `start`.
fn range(pieces: &[&[u8]], start: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    let mut skip = start;
    for piece in pieces {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let take = (piece.len() - skip).min(CHUNK_BYTES - bytes.len());
        bytes.extend_from_slice(&piece[skip..skip + take]);
        skip = 0;
        if bytes.len() == CHUNK_BYTES {
            break;
        }
    }
    bytes
}
