//! Hugging Face directories: config.json, tokenizer.json, tokenizer_config.json and safetensors, in
//! one file or in shards.

use super::assemble::TensorSource;
use super::chat_template::TemplateTokens;
use super::{ModelConfig, ModelError};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use lorikeet_contract::{BaseModelSpec, WeightsDigest};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Transformers' default where a configuration does not say.
const DEFAULT_ROPE_THETA: f32 = 10_000.0;

#[derive(Deserialize)]
struct Config {
    model_type: String,
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
    rope_scaling: Option<Rope>,
    /// Transformers 5 keeps all of rope here.
    rope_parameters: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<u32>,
    quantization_config: Option<Value>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

fn silu() -> String {
    "silu".into()
}

#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<NamedToken>,
    eos_token: Option<NamedToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Text(String),
    Added { content: String },
}

impl NamedToken {
    fn into_text(self) -> String {
        match self {
            NamedToken::Text(text) | NamedToken::Added { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

pub(super) struct HuggingFace {
    directory: PathBuf,
    shards: Vec<Shard>,
    /// Tensor -> shard.
    tensors: HashMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    file: Mmap,
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, ModelError> {
        let file = File::open(&path).map_err(ModelError::io(&path))?;
        // SAFETY: a model file is not changed while it is loaded; the map does not outlive loading.
        let file = unsafe { Mmap::map(&file) }.map_err(ModelError::io(&path))?;
        Ok(Self { path, file })
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, ModelError> {
        SafeTensors::deserialize(&self.file).map_err(|e| ModelError::malformed(&self.path, e))
    }
}

impl HuggingFace {
    pub(super) fn open(directory: &Path) -> Result<Self, ModelError> {
        if !directory.join(CONFIG).is_file() {
            return Err(ModelError::NotAModel { path: directory.into() });
        }
        let files = shard_names(directory)?;
        let mut shards = Vec::with_capacity(files.len());
        let mut tensors = HashMap::new();
        for file in files {
            let shard = Shard::open(directory.join(file))?;
            for name in shard.tensors()?.names() {
                if tensors.insert(name.to_owned(), shards.len()).is_some() {
                    let reason = format!("the tensor {name} is in another shard too");
                    return Err(ModelError::malformed(&shard.path, reason));
                }
            }
            shards.push(shard);
        }
        Ok(Self { directory: directory.into(), shards, tensors })
    }

    /// `weights_digest` is left for the assembly to set.
    pub(super) fn config(&self, id: &str) -> Result<ModelConfig, ModelError> {
        let path = self.directory.join(CONFIG);
        let config: Config = read_json(&path)?;
        if let Some(feature) = unserved(&config) {
            return Err(ModelError::unsupported(&path, feature));
        }
        let num_heads = config.num_attention_heads;
        let per_head = config.hidden_size.checked_div(num_heads).unwrap_or(0);
        let rope_theta = config.rope_parameters.and_then(|r| r.rope_theta).or(config.rope_theta);
        Ok(ModelConfig {
            spec: BaseModelSpec {
                id: id.into(),
                weights_digest: WeightsDigest([0; 32]),
                // Without a sliding window, Mistral's arithmetic is Llama's.
                architecture: "llama".into(),
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                num_layers: config.num_hidden_layers,
                num_heads,
                num_kv_heads: config.num_key_value_heads.unwrap_or(num_heads),
                head_dim: config.head_dim.unwrap_or(per_head),
                vocab_size: config.vocab_size,
                context_length: config.max_position_embeddings,
            },
            rms_norm_eps: config.rms_norm_eps,
            rope_theta: rope_theta.unwrap_or(DEFAULT_ROPE_THETA),
            tie_word_embeddings: config.tie_word_embeddings,
            bos_token: config.bos_token_id,
            eos_tokens: self.eos_tokens(config.eos_token_id)?,
        })
    }

    /// Of both configurations: the one for generation also lists the end of a turn.
    fn eos_tokens(&self, from_config: Option<OneOrMany>) -> Result<Vec<u32>, ModelError> {
        let path = self.directory.join(GENERATION_CONFIG);
        let generation = match path.is_file() {
            true => read_json::<GenerationConfig>(&path)?.eos_token_id,
            false => None,
        };
        let ids = [generation, from_config].into_iter().flatten().flat_map(OneOrMany::into_vec);
        Ok(ids.collect::<BTreeSet<_>>().into_iter().collect())
    }

    pub(super) fn tokenizer_path(&self) -> PathBuf {
        self.directory.join(TOKENIZER)
    }

    /// The chat template and the tokens it may name.
    pub(super) fn template(&self) -> Result<(Option<String>, TemplateTokens), ModelError> {
        let path = self.directory.join(TOKENIZER_CONFIG);
        let config = match path.is_file() {
            true => read_json(&path)?,
            false => TokenizerConfig { chat_template: None, bos_token: None, eos_token: None },
        };
        let tokens = TemplateTokens {
            bos: config.bos_token.map(NamedToken::into_text),
            eos: config.eos_token.map(NamedToken::into_text),
        };
        let file = self.directory.join(TEMPLATE);
        if file.is_file() {
            let template = fs::read_to_string(&file).map_err(ModelError::io(&file))?;
            return Ok((Some(template), tokens));
        }
        let template = match config.chat_template {
            Some(Templates::One(template)) => Some(template),
            Some(Templates::Named(all)) => {
                all.into_iter().find(|t| t.name == "default").map(|t| t.template)
            }
            None => None,
        };
        Ok((template, tokens))
    }
}

/// What the configuration asks for and this decoder does not do.
fn unserved(config: &Config) -> Option<String> {
    let model_type = config.model_type.as_str();
    if !matches!(model_type, "llama" | "mistral") {
        return Some(format!("the architecture {model_type} (llama and mistral are served)"));
    }
    if model_type == "mistral"
        && let Some(window) = config.sliding_window
    {
        return Some(format!("sliding-window attention (sliding_window {window})"));
    }
    for rope in [&config.rope_scaling, &config.rope_parameters].into_iter().flatten() {
        if let Some(kind) = rope.rope_type.as_deref().filter(|kind| *kind != "default") {
            return Some(format!("rope scaling {kind}"));
        }
        if rope.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return Some("rotary embedding of a part of each head (partial_rotary_factor)".into());
        }
    }
    if config.hidden_act != "silu" {
        return Some(format!("the activation {}", config.hidden_act));
    }
    if config.attention_bias {
        return Some("biases in attention (attention_bias)".into());
    }
    if config.mlp_bias {
        return Some("biases in the MLP (mlp_bias)".into());
    }
    config
        .quantization_config
        .is_some()
        .then(|| "quantized safetensors (quantization_config)".into())
}

fn shard_names(directory: &Path) -> Result<Vec<String>, ModelError> {
    let path = directory.join(INDEX);
    if !path.is_file() {
        return Ok(vec![SINGLE.into()]);
    }
    let index: Index = read_json(&path)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(outside) = names.iter().find(|name| name.contains(['/', '\\'])) {
        let reason = format!("the shard {outside} is not a file of this directory");
        return Err(ModelError::malformed(&path, reason));
    }
    Ok(names.into_iter().collect())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = fs::read(path).map_err(ModelError::io(path))?;
    serde_json::from_slice(&text).map_err(|e| ModelError::malformed(path, e))
}

impl TensorSource for HuggingFace {
    fn path(&self) -> &Path {
        &self.directory
    }

    fn names(&self) -> Vec<String> {
        // Old files carry rope's frequencies, which follow from the configuration.
        let computed = |name: &&String| name.ends_with(".rotary_emb.inv_freq");
        self.tensors.keys().filter(|name| !computed(name)).cloned().collect()
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, ModelError> {
        let missing = || ModelError::malformed(&self.directory, format!("no tensor {name}"));
        let shard = &self.shards[*self.tensors.get(name).ok_or_else(missing)?];
        let malformed = |reason: String| ModelError::malformed(&shard.path, reason);
        let tensors = shard.tensors()?;
        let tensor = tensors.tensor(name).map_err(|e| malformed(e.to_string()))?;
        if tensor.shape() != shape {
            let found = tensor.shape();
            return Err(malformed(format!("{name} is {found:?}, expected {shape:?}")));
        }
        let mut values = vec![bf16::ZERO; shape.iter().product()];
        match tensor.dtype() {
            Dtype::BF16 => bytemuck::cast_slice_mut(&mut values).copy_from_slice(tensor.data()),
            Dtype::F16 => {
                let wide =
                    tensor.data().as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32());
                values.convert_from_f32_slice(&wide.collect::<Vec<_>>());
            }
            Dtype::F32 => {
                let wide = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
                values.convert_from_f32_slice(&wide.collect::<Vec<_>>());
            }
            other => {
                let feature = format!("{name} in {other:?} (bf16, f16 and f32 are served)");
                return Err(ModelError::unsupported(&shard.path, feature));
            }
        }
        Ok(values)
    }
}
