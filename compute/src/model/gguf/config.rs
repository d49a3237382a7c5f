//! The configuration in a GGUF file's metadata, and in the presence of tensors: biases have no key.

use super::{Gguf, ROPE_FREQUENCIES};
use crate::model::assemble::{LM_HEAD, bias_name};
use crate::model::{ModelConfig, ModelError, Rope, RopeScaling, SlidingWindow, Yarn};
use lorikeet_contract::{BaseModelSpec, Linear, WeightsDigest};
use std::collections::BTreeSet;

/// llama.cpp's default where a file does not say.
const ROPE_THETA: f32 = 10_000.0;

impl Gguf {
    /// `weights_digest` is left for the assembly to set.
    pub(in crate::model) fn config(&self, id: &str) -> Result<ModelConfig, ModelError> {
        let architecture = self.string("general.architecture")?;
        if !matches!(architecture, "llama" | "qwen2" | "qwen3") {
            return Err(self.unsupported(format!(
                "the architecture {architecture} (llama, qwen2 and qwen3 are served; docs/models.md)"
            )));
        }
        let key = |name: &str| format!("{architecture}.{name}");
        if self.optional_u32(&key("expert_count"))?.is_some_and(|experts| experts > 0) {
            let feature = format!("a mixture of experts ({architecture}.expert_count)");
            return Err(self.unsupported(feature));
        }
        let hidden_size = self.u32(&key("embedding_length"))?;
        let num_layers = self.u32(&key("block_count"))?;
        let num_heads = self.num_heads(architecture)?;
        let head_dim = self
            .optional_u32(&key("attention.key_length"))?
            .or(hidden_size.checked_div(num_heads))
            .unwrap_or(0);
        for part in ["rope.dimension_count", "attention.value_length"] {
            if self.optional_u32(&key(part))?.is_some_and(|n| n != head_dim) {
                let feature = format!("{architecture}.{part} that is not the head size {head_dim}");
                return Err(self.unsupported(feature));
            }
        }
        let vocab_size = match self.optional_u32(&key("vocab_size"))? {
            Some(size) => size,
            None => self.array("tokenizer.ggml.tokens")?.len() as u32,
        };
        let context = self.u32(&key("context_length"))?;
        let rope = Rope {
            theta: self.optional_f32(&key("rope.freq_base"))?.unwrap_or(ROPE_THETA),
            scaling: self.rope_scaling(architecture, context)?,
        };
        Ok(ModelConfig {
            spec: BaseModelSpec {
                id: id.into(),
                weights_digest: WeightsDigest([0; 32]),
                architecture: architecture.into(),
                hidden_size,
                intermediate_size: self.u32(&key("feed_forward_length"))?,
                num_layers,
                num_heads,
                num_kv_heads: self.num_kv_heads(architecture)?,
                head_dim,
                vocab_size,
                context_length: rope.context(context),
            },
            rms_norm_eps: self.f32(&key("attention.layer_norm_rms_epsilon"))?,
            rope,
            tie_word_embeddings: !self.has(LM_HEAD),
            biased: Linear::ALL.into_iter().filter(|l| self.has(&bias_name(0, *l))).collect(),
            head_norms: architecture == "qwen3",
            sliding_window: self.sliding_window(architecture, num_layers)?,
            bos_token: self.optional_u32("tokenizer.ggml.bos_token_id")?,
            eos_tokens: self.eos_tokens()?,
        })
    }

    pub(super) fn num_heads(&self, architecture: &str) -> Result<u32, ModelError> {
        self.u32(&format!("{architecture}.attention.head_count"))
    }

    pub(super) fn num_kv_heads(&self, architecture: &str) -> Result<u32, ModelError> {
        let grouped = self.optional_u32(&format!("{architecture}.attention.head_count_kv"))?;
        grouped.map_or_else(|| self.num_heads(architecture), Ok)
    }

    /// By Hugging Face's name.
    fn has(&self, tensor: &str) -> bool {
        self.names.contains_key(tensor)
    }

    fn unsupported(&self, feature: impl Into<String>) -> ModelError {
        ModelError::unsupported(&self.path, feature)
    }

    fn rope_scaling(&self, architecture: &str, context: u32) -> Result<RopeScaling, ModelError> {
        if self.has(ROPE_FREQUENCIES) {
            return Ok(RopeScaling::Divisors(self.tensor(ROPE_FREQUENCIES)?));
        }
        let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
        let kind = self.optional_string(&key("type"))?.unwrap_or("none");
        match kind {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: self.f32(&key("factor"))? }),
            "yarn" => self.yarn(key, context).map(RopeScaling::Yarn),
            other => Err(self.unsupported(format!(
                "rope scaling {other} (none, linear and yarn are served; docs/models.md)"
            ))),
        }
    }

    fn yarn(&self, key: impl Fn(&str) -> String, context: u32) -> Result<Yarn, ModelError> {
        let factor = self.f32(&key("factor"))?;
        let optional = |name: &str| self.optional_f32(&key(name));
        let extrapolation = optional("yarn_ext_factor")?.unwrap_or(1.0);
        if extrapolation != 1.0 {
            let name = key("yarn_ext_factor");
            return Err(self.unsupported(format!("{name} {extrapolation} (1 is served)")));
        }
        // llama.cpp's factor is on top of the paper's.
        let attention = optional("yarn_attn_factor")?.unwrap_or(1.0);
        Ok(Yarn {
            factor,
            original_context: self
                .optional_u32(&key("original_context_length"))?
                .unwrap_or(context),
            beta_fast: optional("yarn_beta_fast")?.unwrap_or(Yarn::BETA_FAST),
            beta_slow: optional("yarn_beta_slow")?.unwrap_or(Yarn::BETA_SLOW),
            truncate: true,
            attention_factor: attention * Yarn::attention_factor(factor, 1.0),
        })
    }

    /// Mistral's, which is of the llama architecture here, is in every layer. Which layers of another
    /// architecture have it is not in the file.
    fn sliding_window(
        &self,
        architecture: &str,
        num_layers: u32,
    ) -> Result<Option<SlidingWindow>, ModelError> {
        let key = format!("{architecture}.attention.sliding_window");
        let Some(positions) = self.optional_u32(&key)?.filter(|n| *n > 0) else { return Ok(None) };
        if architecture != "llama" {
            return Err(self.unsupported(format!(
                "{key}: it does not say in which layers; use the model's Hugging Face directory"
            )));
        }
        Ok(Some(SlidingWindow { positions, layers: vec![true; num_layers as usize] }))
    }

    fn eos_tokens(&self) -> Result<Vec<u32>, ModelError> {
        let mut tokens = BTreeSet::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            tokens.extend(self.optional_u32(key)?);
        }
        Ok(tokens.into_iter().collect())
    }
}
