//! GGUF files (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), llama.cpp's format:
//! configuration, tokenizer, chat template and quantized weights in one file.

use super::assemble::{EMBEDDING, LM_HEAD, NORM, TensorSource, linear_name};
use super::assemble::{input_norm_name, post_attention_norm_name};
use super::{ModelConfig, ModelError};
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use lorikeet_contract::{BaseModelSpec, Linear, WeightsDigest};
use memmap2::Mmap;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Llama's default where a file does not say.
const DEFAULT_ROPE_THETA: f32 = 10_000.0;

pub(super) struct Gguf {
    path: PathBuf,
    file: Mmap,
    content: Content,
    /// Hugging Face name -> the file's name.
    names: HashMap<String, String>,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        // SAFETY: a model file is not changed while it is loaded; the map does not outlive loading.
        let file = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
        let content = Content::read(&mut Cursor::new(&file[..]))
            .map_err(|e| ModelError::malformed(path, e))?;
        let names = content
            .tensor_infos
            .keys()
            .map(|name| (hugging_face_name(name).unwrap_or_else(|| name.clone()), name.clone()))
            .collect();
        Ok(Self { path: path.into(), file, content, names })
    }

    /// `weights_digest` is left for the assembly to set.
    pub(super) fn config(&self, id: &str) -> Result<ModelConfig, ModelError> {
        let architecture = self.string("general.architecture")?;
        if architecture != "llama" {
            let feature = format!("the architecture {architecture} (llama is served)");
            return Err(ModelError::unsupported(&self.path, feature));
        }
        self.refuse_variants()?;
        let hidden_size = self.u32("llama.embedding_length")?;
        let num_heads = self.num_heads()?;
        let head_dim = self
            .optional_u32("llama.attention.key_length")?
            .unwrap_or_else(|| hidden_size.checked_div(num_heads).unwrap_or(0));
        if self.optional_u32("llama.rope.dimension_count")?.is_some_and(|n| n != head_dim) {
            let feature = "rotary embedding of a part of each head (llama.rope.dimension_count)";
            return Err(ModelError::unsupported(&self.path, feature));
        }
        let vocab_size = match self.optional_u32("llama.vocab_size")? {
            Some(size) => size,
            None => self.array("tokenizer.ggml.tokens")?.len() as u32,
        };
        Ok(ModelConfig {
            spec: BaseModelSpec {
                id: id.into(),
                weights_digest: WeightsDigest([0; 32]),
                architecture: architecture.into(),
                hidden_size,
                intermediate_size: self.u32("llama.feed_forward_length")?,
                num_layers: self.u32("llama.block_count")?,
                num_heads,
                num_kv_heads: self.num_kv_heads()?,
                head_dim,
                vocab_size,
                context_length: self.u32("llama.context_length")?,
            },
            rms_norm_eps: self.f32("llama.attention.layer_norm_rms_epsilon")?,
            rope_theta: match self.content.metadata.contains_key("llama.rope.freq_base") {
                true => self.f32("llama.rope.freq_base")?,
                false => DEFAULT_ROPE_THETA,
            },
            tie_word_embeddings: !self.names.contains_key(LM_HEAD),
            bos_token: self.optional_u32("tokenizer.ggml.bos_token_id")?,
            eos_tokens: self.eos_tokens()?,
        })
    }

    fn num_heads(&self) -> Result<u32, ModelError> {
        self.u32("llama.attention.head_count")
    }

    fn num_kv_heads(&self) -> Result<u32, ModelError> {
        let grouped = self.optional_u32("llama.attention.head_count_kv")?;
        grouped.map_or_else(|| self.num_heads(), Ok)
    }

    /// Llama variants that change the arithmetic and are marked in the metadata.
    fn refuse_variants(&self) -> Result<(), ModelError> {
        if let Some(kind) = self.optional_string("llama.rope.scaling.type")?
            && kind != "none"
        {
            return Err(ModelError::unsupported(&self.path, format!("rope scaling {kind}")));
        }
        let variants = [
            ("llama.expert_count", "a mixture of experts"),
            ("llama.attention.sliding_window", "sliding-window attention"),
        ];
        for (key, feature) in variants {
            if self.optional_u32(key)?.is_some_and(|n| n > 0) {
                return Err(ModelError::unsupported(&self.path, format!("{feature} ({key})")));
            }
        }
        Ok(())
    }

    fn eos_tokens(&self) -> Result<Vec<u32>, ModelError> {
        let mut tokens = BTreeSet::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            tokens.extend(self.optional_u32(key)?);
        }
        Ok(tokens.into_iter().collect())
    }

    fn optional(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn value(&self, key: &str) -> Result<&Value, ModelError> {
        let missing = || ModelError::malformed(&self.path, format!("no {key} in its metadata"));
        self.optional(key).ok_or_else(missing)
    }

    fn mistyped(&self, key: &str) -> ModelError {
        ModelError::malformed(&self.path, format!("{key} in its metadata has the wrong type"))
    }

    fn u32(&self, key: &str) -> Result<u32, ModelError> {
        let wide = match self.value(key)? {
            Value::I32(v) => u64::try_from(*v).ok(),
            Value::I64(v) => u64::try_from(*v).ok(),
            other => other.to_u64().ok(),
        };
        wide.and_then(|v| v.try_into().ok()).ok_or_else(|| self.mistyped(key))
    }

    pub(super) fn optional_u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.optional(key).map(|_| self.u32(key)).transpose()
    }

    fn f32(&self, key: &str) -> Result<f32, ModelError> {
        self.value(key)?.to_f32().map_err(|_| self.mistyped(key))
    }

    pub(super) fn string(&self, key: &str) -> Result<&str, ModelError> {
        Ok(self.value(key)?.to_string().map_err(|_| self.mistyped(key))?)
    }

    pub(super) fn optional_string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.optional(key).map(|_| self.string(key)).transpose()
    }

    fn array(&self, key: &str) -> Result<&[Value], ModelError> {
        Ok(self.value(key)?.to_vec().map_err(|_| self.mistyped(key))?)
    }

    pub(super) fn strings<'a>(&'a self, key: &str) -> Result<Vec<&'a str>, ModelError> {
        let text = |value: &'a Value| match value {
            Value::String(text) => Ok(text.as_str()),
            _ => Err(self.mistyped(key)),
        };
        self.array(key)?.iter().map(text).collect()
    }

    pub(super) fn integers(&self, key: &str) -> Result<Vec<i64>, ModelError> {
        let integer = |value: &Value| match value {
            Value::I32(v) => Ok((*v).into()),
            Value::U32(v) => Ok((*v).into()),
            Value::U8(v) => Ok((*v).into()),
            _ => Err(self.mistyped(key)),
        };
        self.array(key)?.iter().map(integer).collect()
    }
}

impl TensorSource for Gguf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, ModelError> {
        let malformed = |reason: String| ModelError::malformed(&self.path, reason);
        let stored = self.names.get(name).ok_or_else(|| malformed(format!("no tensor {name}")))?;
        let info = &self.content.tensor_infos[stored];
        if info.shape.dims() != shape {
            let found = info.shape.dims();
            return Err(malformed(format!("{stored} is {found:?}, expected {shape:?}")));
        }
        let values = info
            .read(&mut Cursor::new(&self.file[..]), self.content.tensor_data_offset, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>())
            .map_err(|e| malformed(format!("{stored}: {e}")))?;
        let mut rounded = vec![bf16::ZERO; values.len()];
        rounded.convert_from_f32_slice(&values);
        let heads = match name {
            _ if name.ends_with("q_proj.weight") => self.num_heads()?,
            _ if name.ends_with("k_proj.weight") => self.num_kv_heads()?,
            _ => return Ok(rounded),
        };
        Ok(rotate_half_order(&rounded, heads as usize, shape))
    }
}

/// llama.cpp stores q and k for interleaved rope: rows `2i` and `2i + 1` of a head turn together.
/// Hugging Face, and so every adapter, pairs rows `i` and `i + head_dim / 2`.
fn rotate_half_order(interleaved: &[bf16], heads: usize, shape: &[usize]) -> Vec<bf16> {
    let [rows, cols] = *shape else { return interleaved.to_vec() };
    let head_dim = rows / heads;
    let mut out = Vec::with_capacity(interleaved.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + 2 * pair + half;
                out.extend_from_slice(&interleaved[row * cols..][..cols]);
            }
        }
    }
    out
}

fn hugging_face_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some(EMBEDDING.into()),
        "output_norm.weight" => return Some(NORM.into()),
        "output.weight" => return Some(LM_HEAD.into()),
        _ => {}
    }
    let (layer, tensor) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let linear = match tensor {
        "attn_norm.weight" => return Some(input_norm_name(layer)),
        "ffn_norm.weight" => return Some(post_attention_norm_name(layer)),
        "attn_q.weight" => Linear::QProj,
        "attn_k.weight" => Linear::KProj,
        "attn_v.weight" => Linear::VProj,
        "attn_output.weight" => Linear::OProj,
        "ffn_gate.weight" => Linear::GateProj,
        "ffn_up.weight" => Linear::UpProj,
        "ffn_down.weight" => Linear::DownProj,
        _ => return None,
    };
    Some(linear_name(layer, linear))
}
