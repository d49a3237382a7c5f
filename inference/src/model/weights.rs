//! A decoder's weights as loaded, in Hugging Face's order (rotate-half rope), before any backend
//! packs them for its kernels.

use super::assemble::{
    EMBEDDING, LM_HEAD, NORM, input_norm_name, linear_name, post_attention_norm_name,
};
use super::parallel;
use half::bf16;
use lorikeet_contract::digest::{CHUNK_BYTES, leaf};
use lorikeet_contract::{BaseModelSpec, ContentDigest, Linear, WeightsDigest};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;

/// What a decoder of the Llama family needs to know of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub spec: BaseModelSpec,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// The output layer is the embedding.
    pub tie_word_embeddings: bool,
    pub bos_token: Option<u32>,
    /// Tokens that end an answer, in ascending order.
    pub eos_tokens: Vec<u32>,
}

/// A row-major matrix, `rows x cols`; a linear layer's weight is `out x in`.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<bf16>,
}

/// The normalisation weights are f32 that bf16 holds exactly.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// In the order of [`Linear::ALL`].
    pub linears: [Matrix; 7],
    pub input_norm: Vec<f32>,
    pub post_attention_norm: Vec<f32>,
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
            }
            let norms = [
                (input_norm_name(index), &layer.input_norm),
                (post_attention_norm_name(index), &layer.post_attention_norm),
            ];
            for (name, norm) in norms {
                tensors.insert(name, Cow::Owned(vector(norm)));
            }
        }
        tensors
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
