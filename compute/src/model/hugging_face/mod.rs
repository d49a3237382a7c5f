//! Hugging Face directories: config.json, tokenizer.json, tokenizer_config.json and safetensors, in
//! one file or in shards.

mod config;

use super::assemble::TensorSource;
use super::chat_template::TemplateTokens;
use super::{ModelConfig, ModelError, Values};
use config::{OneOrMany, Refusal};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<NamedToken>,
    eos_token: Option<NamedToken>,
    add_bos_token: Option<bool>,
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

pub(super) struct FoundTemplates {
    pub chat: Option<String>,
    pub tool_use: Option<String>,
    pub tokens: TemplateTokens,
    /// Whether texts begin with the token for it. None: as tokenizer.json says.
    pub adds_bos: Option<bool>,
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
    file: Arc<Mmap>,
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, ModelError> {
        let file = File::open(&path).map_err(ModelError::io(&path))?;
        // SAFETY: a model file is not changed while it is loaded; the map goes with the weights, once a
        // backend has made its own of them.
        let file = unsafe { Mmap::map(&file) }.map_err(ModelError::io(&path))?;
        Ok(Self { path, file: Arc::new(file) })
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
        let json = fs::read(&path).map_err(ModelError::io(&path))?;
        let mut config = config::parse(&json, id).map_err(|refusal| match refusal {
            Refusal::Malformed(reason) => ModelError::malformed(&path, reason),
            Refusal::Unsupported(feature) => ModelError::unsupported(&path, feature),
        })?;
        // The configuration for generation also lists the end of a turn.
        let path = self.directory.join(GENERATION_CONFIG);
        if path.is_file() {
            let generation: GenerationConfig = read_json(&path)?;
            let more = generation.eos_token_id.map(OneOrMany::into_vec);
            config.eos_tokens.extend(more.unwrap_or_default());
        }
        config.eos_tokens.sort_unstable();
        config.eos_tokens.dedup();
        Ok(config)
    }

    pub(super) fn tokenizer_path(&self) -> PathBuf {
        self.directory.join(TOKENIZER)
    }

    /// The chat templates and the tokens they may name.
    pub(super) fn templates(&self) -> Result<FoundTemplates, ModelError> {
        let path = self.directory.join(TOKENIZER_CONFIG);
        let config = match path.is_file() {
            true => read_json(&path)?,
            false => TokenizerConfig::default(),
        };
        let adds_bos = config.add_bos_token;
        let tokens = TemplateTokens {
            bos: config.bos_token.map(NamedToken::into_text),
            eos: config.eos_token.map(NamedToken::into_text),
        };
        let file = self.directory.join(TEMPLATE);
        if file.is_file() {
            let template = fs::read_to_string(&file).map_err(ModelError::io(&file))?;
            return Ok(FoundTemplates { chat: Some(template), tool_use: None, tokens, adds_bos });
        }
        let mut found = FoundTemplates { chat: None, tool_use: None, tokens, adds_bos };
        match config.chat_template {
            Some(Templates::One(template)) => found.chat = Some(template),
            Some(Templates::Named(all)) => {
                for NamedTemplate { name, template } in all {
                    match name.as_str() {
                        "default" => found.chat = Some(template),
                        "tool_use" => found.tool_use = Some(template),
                        _ => {}
                    }
                }
            }
            None => {}
        }
        Ok(found)
    }
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

    fn read(&self, name: &str, shape: &[usize]) -> Result<Values, ModelError> {
        let missing = || ModelError::malformed(&self.directory, format!("no tensor {name}"));
        let shard = &self.shards[*self.tensors.get(name).ok_or_else(missing)?];
        let malformed = |reason: String| ModelError::malformed(&shard.path, reason);
        let tensors = shard.tensors()?;
        let tensor = tensors.tensor(name).map_err(|e| malformed(e.to_string()))?;
        if tensor.shape() != shape {
            let found = tensor.shape();
            return Err(malformed(format!("{name} is {found:?}, expected {shape:?}")));
        }
        if tensor.dtype() == Dtype::BF16
            && let Some(values) = Values::mapped(&shard.file, tensor.data())
        {
            values.read_ahead();
            return Ok(values);
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
        Ok(values.into())
    }
}
