//! A decoder's weights as loaded, in Hugging Face's order (rotate-half rope), before any backend
//! packs them for its kernels.

use half::bf16;
use lorikeet_contract::{BaseModelSpec, Linear};

/// What a decoder of the Llama family needs to know of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub spec: BaseModelSpec,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// The output layer is the embedding.
    pub tie_word_embeddings: bool,
    pub bos_token: Option<u32>,
    /// Tokens that end an answer.
    pub eos_tokens: Vec<u32>,
}

/// A row-major matrix, `rows x cols`; a linear layer's weight is `out x in`.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<bf16>,
}

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
