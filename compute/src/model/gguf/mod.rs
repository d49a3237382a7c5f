//! GGUF files (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), llama.cpp's format:
//! configuration, tokenizer, chat template and quantized weights in one file.

mod config;
mod tokenizer;

use super::assemble::{
    EMBEDDING, LM_HEAD, NORM, TensorSource, bias_name, input_norm_name, key_norm_name, linear_name,
    post_attention_norm_name, query_norm_name,
};
use super::{ModelError, Values};
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use lorikeet_contract::Linear;
use memmap2::Mmap;
use std::collections::HashMap;
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// llama.cpp's name for what Llama 3.1's rope scaling comes to.
const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

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

    fn optional_u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.optional(key).map(|_| self.u32(key)).transpose()
    }

    fn f32(&self, key: &str) -> Result<f32, ModelError> {
        self.value(key)?.to_f32().map_err(|_| self.mistyped(key))
    }

    fn optional_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.optional(key).map(|_| self.f32(key)).transpose()
    }

    fn string(&self, key: &str) -> Result<&str, ModelError> {
        Ok(self.value(key)?.to_string().map_err(|_| self.mistyped(key))?)
    }

    pub(super) fn optional_string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.optional(key).map(|_| self.string(key)).transpose()
    }

    fn array(&self, key: &str) -> Result<&[Value], ModelError> {
        Ok(self.value(key)?.to_vec().map_err(|_| self.mistyped(key))?)
    }

    fn strings<'a>(&'a self, key: &str) -> Result<Vec<&'a str>, ModelError> {
        let text = |value: &'a Value| match value {
            Value::String(text) => Ok(text.as_str()),
            _ => Err(self.mistyped(key)),
        };
        self.array(key)?.iter().map(text).collect()
    }

    fn optional_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let value = self.optional(key).map(|value| value.to_bool());
        value.transpose().map_err(|_| self.mistyped(key))
    }

    fn floats(&self, key: &str) -> Result<Vec<f32>, ModelError> {
        let float = |value: &Value| value.to_f32().map_err(|_| self.mistyped(key));
        self.array(key)?.iter().map(float).collect()
    }

    fn integers(&self, key: &str) -> Result<Vec<i64>, ModelError> {
        let integer = |value: &Value| match value {
            Value::I32(v) => Ok((*v).into()),
            Value::U32(v) => Ok((*v).into()),
            Value::U8(v) => Ok((*v).into()),
            _ => Err(self.mistyped(key)),
        };
        self.array(key)?.iter().map(integer).collect()
    }
}

impl Gguf {
    /// A tensor's values by the file's name for it.
    fn tensor(&self, stored: &str) -> Result<Vec<f32>, ModelError> {
        self.content.tensor_infos[stored]
            .read(&mut Cursor::new(&self.file[..]), self.content.tensor_data_offset, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>())
            .map_err(|e| ModelError::malformed(&self.path, format!("{stored}: {e}")))
    }

    /// The heads of a tensor whose rows llama.cpp reordered: q and k of the llama architecture. It
    /// rotates the other ones as Hugging Face does.
    fn interleaved_heads(&self, name: &str) -> Result<Option<u32>, ModelError> {
        if self.string("general.architecture")? != "llama" {
            return Ok(None);
        }
        match name {
            _ if name.contains(".q_proj.") => self.num_heads("llama").map(Some),
            _ if name.contains(".k_proj.") => self.num_kv_heads("llama").map(Some),
            _ => Ok(None),
        }
    }
}

impl TensorSource for Gguf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        // Part of the configuration.
        self.names.keys().filter(|name| *name != ROPE_FREQUENCIES).cloned().collect()
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Values, ModelError> {
        let malformed = |reason: String| ModelError::malformed(&self.path, reason);
        let stored = self.names.get(name).ok_or_else(|| malformed(format!("no tensor {name}")))?;
        let found = self.content.tensor_infos[stored].shape.dims();
        if found != shape {
            return Err(malformed(format!("{stored} is {found:?}, expected {shape:?}")));
        }
        let values = self.tensor(stored)?;
        let mut rounded = vec![bf16::ZERO; values.len()];
        rounded.convert_from_f32_slice(&values);
        match self.interleaved_heads(name)? {
            Some(heads) => Ok(rotate_half_order(&rounded, heads as usize, shape).into()),
            None => Ok(rounded.into()),
        }
    }
}

/// llama.cpp stores q and k for interleaved rope: rows `2i` and `2i + 1` of a head turn together.
/// Hugging Face, and so every adapter, pairs rows `i` and `i + head_dim / 2`.
fn rotate_half_order(interleaved: &[bf16], heads: usize, shape: &[usize]) -> Vec<bf16> {
    let rows = shape[0];
    let cols = interleaved.len() / rows;
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
    match tensor {
        "attn_norm.weight" => return Some(input_norm_name(layer)),
        "ffn_norm.weight" => return Some(post_attention_norm_name(layer)),
        "attn_q_norm.weight" => return Some(query_norm_name(layer)),
        "attn_k_norm.weight" => return Some(key_norm_name(layer)),
        _ => {}
    }
    let (module, kind) = tensor.rsplit_once('.')?;
    let linear = match module {
        "attn_q" => Linear::QProj,
        "attn_k" => Linear::KProj,
        "attn_v" => Linear::VProj,
        "attn_output" => Linear::OProj,
        "ffn_gate" => Linear::GateProj,
        "ffn_up" => Linear::UpProj,
        "ffn_down" => Linear::DownProj,
        _ => return None,
    };
    match kind {
        "weight" => Some(linear_name(layer, linear)),
        "bias" => Some(bias_name(layer, linear)),
        _ => None,
    }
}
