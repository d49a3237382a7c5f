//! config.json of the families that are served, and what each leaves to its own defaults
//! (`configuration_*.py` of Transformers).

use crate::model::{ModelConfig, Rope, RopeScaling, SlidingWindow, Yarn};
use lorikeet_contract::{BaseModelSpec, Linear, WeightsDigest};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Transformers' defaults where a configuration does not say.
const ROPE_THETA: f32 = 10_000.0;
const MISTRAL_WINDOW: u32 = 4096;
const QWEN3_HEAD_DIM: u32 = 128;
const QWEN_FULL_LAYERS: u32 = 28;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// Read first: other architectures need not have the rest.
#[derive(Deserialize)]
struct Architecture {
    model_type: String,
}

#[derive(Deserialize)]
struct Config {
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    vocab_size: u32,
    max_position_embeddings: u32,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<RopeParameters>,
    /// Transformers 5 keeps all of rope here.
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    /// Absent is the family's default, null is none.
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<u32>>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<u32>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

fn silu() -> String {
    "silu".into()
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    /// The older name; some configurations have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<u32>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    truncate: Option<bool>,
    attention_factor: Option<f32>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

/// Why a configuration is not computed.
pub(super) enum Refusal {
    Malformed(String),
    /// The feature by name, and what to do where that helps.
    Unsupported(String),
}

fn unsupported<T>(feature: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unsupported(feature.into()))
}

impl Family {
    fn of(model_type: &str) -> Result<Self, Refusal> {
        match model_type {
            "llama" => Ok(Family::Llama),
            "mistral" => Ok(Family::Mistral),
            "qwen2" => Ok(Family::Qwen2),
            "qwen3" => Ok(Family::Qwen3),
            other => unsupported(format!(
                "the architecture {other} (llama, mistral, qwen2 and qwen3 are served; docs/models.md)"
            )),
        }
    }

    /// As GGUF names it: Mistral is Llama there, and its arithmetic is Llama's with a window.
    fn architecture(self) -> &'static str {
        match self {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    fn biased(self, config: &Config) -> Vec<Linear> {
        let (qkv, output, mlp) = match self {
            Family::Llama => (config.attention_bias, config.attention_bias, config.mlp_bias),
            Family::Mistral => (false, false, false),
            Family::Qwen2 => (true, false, false),
            Family::Qwen3 => (config.attention_bias, config.attention_bias, false),
        };
        let has_bias = |linear: &Linear| match linear {
            Linear::QProj | Linear::KProj | Linear::VProj => qkv,
            Linear::OProj => output,
            Linear::GateProj | Linear::UpProj | Linear::DownProj => mlp,
        };
        Linear::ALL.into_iter().filter(has_bias).collect()
    }

    fn sliding_window(self, config: &Config) -> Result<Option<SlidingWindow>, Refusal> {
        let every_layer = 0..config.num_hidden_layers;
        match self {
            Family::Llama => Ok(None),
            Family::Mistral => {
                let positions = config.sliding_window.unwrap_or(Some(MISTRAL_WINDOW));
                let layers = every_layer.map(|_| true).collect();
                Ok(positions.map(|positions| SlidingWindow { positions, layers }))
            }
            Family::Qwen2 | Family::Qwen3 => {
                let Some(positions) = config.sliding_window.unwrap_or(Some(MISTRAL_WINDOW)) else {
                    return Ok(None);
                };
                let layers = match &config.layer_types {
                    Some(types) => windowed(types, config.num_hidden_layers)?,
                    None => {
                        let full = config.max_window_layers.unwrap_or(QWEN_FULL_LAYERS);
                        every_layer.map(|layer| layer >= full).collect()
                    }
                };
                let has_window = config.use_sliding_window && layers.contains(&true);
                Ok(has_window.then_some(SlidingWindow { positions, layers }))
            }
        }
    }
}

fn windowed(types: &[String], num_layers: u32) -> Result<Vec<bool>, Refusal> {
    if types.len() != num_layers as usize {
        let reason = format!("{} layer_types for {num_layers} layers", types.len());
        return Err(Refusal::Malformed(reason));
    }
    let is_windowed = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => unsupported(format!("the layer type {other}")),
    };
    types.iter().map(is_windowed).collect()
}

/// `weights_digest` is left for the assembly to set. The tokens that end an answer are those of
/// config.json alone.
pub(super) fn parse(json: &[u8], id: &str) -> Result<ModelConfig, Refusal> {
    let malformed = |e: serde_json::Error| Refusal::Malformed(e.to_string());
    let Architecture { model_type } = serde_json::from_slice(json).map_err(malformed)?;
    let family = Family::of(&model_type)?;
    serde_json::from_slice::<Config>(json).map_err(malformed)?.into_model(family, id)
}

impl Config {
    fn into_model(self, family: Family, id: &str) -> Result<ModelConfig, Refusal> {
        if let Some(feature) = self.unserved() {
            return unsupported(feature);
        }
        let num_heads = self.num_attention_heads;
        let head_dim = match family {
            Family::Qwen3 => self.head_dim.unwrap_or(QWEN3_HEAD_DIM),
            _ => self.head_dim.or(self.hidden_size.checked_div(num_heads)).unwrap_or(0),
        };
        let rope = self.rope()?;
        Ok(ModelConfig {
            spec: BaseModelSpec {
                id: id.into(),
                weights_digest: WeightsDigest([0; 32]),
                architecture: family.architecture().into(),
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                num_layers: self.num_hidden_layers,
                num_heads,
                num_kv_heads: self.num_key_value_heads.unwrap_or(num_heads),
                head_dim,
                vocab_size: self.vocab_size,
                context_length: rope.context(self.max_position_embeddings),
            },
            rms_norm_eps: self.rms_norm_eps,
            biased: family.biased(&self),
            head_norms: family == Family::Qwen3,
            sliding_window: family.sliding_window(&self)?,
            rope,
            tie_word_embeddings: self.tie_word_embeddings,
            bos_token: self.bos_token_id,
            eos_tokens: self.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default(),
        })
    }

    /// What the configuration asks for and no decoder here does.
    fn unserved(&self) -> Option<String> {
        if self.hidden_act != "silu" {
            return Some(format!("the activation {}", self.hidden_act));
        }
        self.quantization_config.as_ref().map(|_| {
            "quantized safetensors (quantization_config); use the model in bf16, or a GGUF file"
                .into()
        })
    }

    fn rope(&self) -> Result<Rope, Refusal> {
        let Some(rope) = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()) else {
            return Ok(Rope::plain(self.rope_theta.unwrap_or(ROPE_THETA)));
        };
        if rope.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return unsupported("rotary embedding of a part of each head (partial_rotary_factor)");
        }
        let theta = rope.rope_theta.or(self.rope_theta).unwrap_or(ROPE_THETA);
        Ok(Rope { theta, scaling: rope.scaling(self.max_position_embeddings)? })
    }
}

impl RopeParameters {
    fn scaling(&self, context: u32) -> Result<RopeScaling, Refusal> {
        let kind = self.rope_type.as_ref().or(self.old_type.as_ref());
        let kind = kind.map_or("default", String::as_str);
        let required = |name: &str, value: Option<f32>| {
            let missing = || Refusal::Malformed(format!("rope scaling {kind} without {name}"));
            value.ok_or_else(missing)
        };
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: required("factor", self.factor)? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: required("factor", self.factor)?,
                low_freq_factor: required("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: required("high_freq_factor", self.high_freq_factor)?,
                original_context: self.original_max_position_embeddings.unwrap_or(context),
            }),
            "yarn" => {
                let original_context = self.original_max_position_embeddings.unwrap_or(context);
                let ratio = context as f32 / original_context as f32;
                let factor = self.factor.unwrap_or(ratio);
                Ok(RopeScaling::Yarn(Yarn {
                    factor,
                    original_context,
                    beta_fast: self.beta_fast.unwrap_or(Yarn::BETA_FAST),
                    beta_slow: self.beta_slow.unwrap_or(Yarn::BETA_SLOW),
                    truncate: self.truncate.unwrap_or(true),
                    attention_factor: self.attention_factor.unwrap_or_else(|| self.mscale(factor)),
                }))
            }
            other => unsupported(format!(
                "rope scaling {other} (default, linear, llama3 and yarn are served; docs/models.md)"
            )),
        }
    }

    fn mscale(&self, factor: f32) -> f32 {
        match (self.mscale, self.mscale_all_dim) {
            (Some(weight), Some(all)) if weight != 0.0 && all != 0.0 => {
                Yarn::attention_factor(factor, weight) / Yarn::attention_factor(factor, all)
            }
            _ => Yarn::attention_factor(factor, 1.0),
        }
    }
}
