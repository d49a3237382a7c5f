//! A tiny model with random weights, written in the formats that are read.

use crate::model::fixture::base_model;
use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use lorikeet_contract::Linear;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub(super) const HIDDEN: usize = 32;
pub(super) const INTERMEDIATE: usize = 64;
pub(super) const LAYERS: usize = 2;
/// Eight rows more than tokens.
pub(super) const VOCABULARY: usize = 49_160;

/// Values that all three dtypes hold exactly, so that every format must give the same weights.
pub(super) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// 4 heads of 8, 2 key/value heads, an output layer of its own.
pub(super) fn tensors() -> Tensors {
    let mut rng = StdRng::seed_from_u64(1);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let count = shape.iter().product();
        let values = (0..count).map(|_| rng.random_range(-64i8..64) as f32 / 32.0).collect();
        tensors.insert(name, (shape.to_vec(), values));
    };
    add("model.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN]);
    add("lm_head.weight".into(), &[VOCABULARY, HIDDEN]);
    add("model.norm.weight".into(), &[HIDDEN]);
    for layer in 0..LAYERS {
        add(format!("model.layers.{layer}.input_layernorm.weight"), &[HIDDEN]);
        add(format!("model.layers.{layer}.post_attention_layernorm.weight"), &[HIDDEN]);
        for linear in Linear::ALL {
            let shape = match linear {
                Linear::QProj | Linear::OProj => [HIDDEN, HIDDEN],
                Linear::KProj | Linear::VProj => [HIDDEN / 2, HIDDEN],
                Linear::GateProj | Linear::UpProj => [INTERMEDIATE, HIDDEN],
                Linear::DownProj => [HIDDEN, INTERMEDIATE],
            };
            add(format!("model.layers.{layer}.{}.weight", linear.path()), &shape);
        }
    }
    tensors
}

pub(super) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "rope_scaling": null, "hidden_act": "silu",
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 0,
    })
}

/// Configuration, tokenizer and template, without weights.
pub(super) fn write_directory(dir: &Path, config: &Value) {
    write_json(&dir.join("config.json"), config);
    write_json(&dir.join("generation_config.json"), &json!({ "eos_token_id": [2, 0] }));
    let tokenizer = base_model().tokenizer.to_json().expect("a tokenizer is plain data");
    fs::write(dir.join("tokenizer.json"), tokenizer).expect("writes");
    let tokens = json!({
        "bos_token": { "content": "<|im_start|>", "lstrip": false }, "eos_token": "<|im_end|>",
        "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    });
    write_json(&dir.join("tokenizer_config.json"), &tokens);
}

pub(super) fn write_json(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).expect("writes");
}

pub(super) fn write_single(dir: &Path, dtype: Dtype, tensors: &Tensors) {
    write_safetensors(&dir.join("model.safetensors"), dtype, tensors);
}

/// Two files and their index; every second tensor in the other file.
pub(super) fn write_shards(dir: &Path, dtypes: [Dtype; 2], tensors: &Tensors) {
    let mut weight_map = serde_json::Map::new();
    for (shard, dtype) in dtypes.into_iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let part: Tensors = tensors.clone().into_iter().skip(shard).step_by(2).collect();
        weight_map.extend(part.keys().map(|name| (name.clone(), json!(file))));
        write_safetensors(&dir.join(file), dtype, &part);
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    write_json(&dir.join("model.safetensors.index.json"), &index);
}

fn write_safetensors(path: &Path, dtype: Dtype, tensors: &Tensors) {
    let bytes: Vec<Vec<u8>> = tensors.values().map(|(_, values)| encode(dtype, values)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
        (name, TensorView::new(dtype, shape.clone(), bytes).expect("bytes fit the shape"))
    });
    safetensors::serialize_to_file(views, None, path).expect("writes");
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        other => panic!("{other:?} is not written"),
    }
}

/// The metadata of the same model as GGUF.
pub(super) fn metadata() -> BTreeMap<String, Meta> {
    let tokenizer = base_model().tokenizer.to_json().expect("a tokenizer is plain data");
    let json: Value = serde_json::from_str(&tokenizer).expect("it is JSON");
    let vocab = json["model"]["vocab"].as_object().expect("a vocabulary");
    let mut tokens: Vec<(&str, u64)> =
        vocab.iter().map(|(token, id)| (token.as_str(), id.as_u64().expect("an id"))).collect();
    tokens.sort_by_key(|(_, id)| *id);
    let kinds = tokens.iter().map(|(_, id)| Meta::I32(if *id < 17 { 3 } else { 1 }));
    let merges = json["model"]["merges"].as_array().expect("merges").iter();
    let merge = |pair: &Value| {
        let part = |i: usize| pair[i].as_str().expect("a token");
        Meta::String(format!("{} {}", part(0), part(1)))
    };
    let text = |text: &str| Meta::String(text.into());
    let number = |n: usize| Meta::U32(n as u32);
    let template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
    let entries = [
        ("general.architecture", text("llama")),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.feed_forward_length", number(INTERMEDIATE)),
        ("llama.block_count", number(LAYERS)),
        ("llama.attention.head_count", number(4)),
        ("llama.attention.head_count_kv", number(2)),
        ("llama.vocab_size", number(VOCABULARY)),
        ("llama.context_length", number(128)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-6)),
        ("llama.rope.freq_base", Meta::F32(500_000.0)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.tokens", Meta::Array(tokens.iter().map(|(t, _)| text(t)).collect())),
        ("tokenizer.ggml.token_type", Meta::Array(kinds.collect())),
        ("tokenizer.ggml.merges", Meta::Array(merges.map(merge).collect())),
        ("tokenizer.ggml.bos_token_id", number(1)),
        ("tokenizer.ggml.eos_token_id", number(2)),
        ("tokenizer.ggml.eot_token_id", number(0)),
        ("tokenizer.chat_template", text(template)),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Writes the tensors under llama.cpp's names, q and k in interleaved order.
pub(super) fn write_gguf(
    path: &Path,
    dtype: GgmlDType,
    metadata: &BTreeMap<String, Meta>,
    tensors: &Tensors,
) {
    let quantized: Vec<(String, QTensor)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let heads = match name {
                _ if name.ends_with("q_proj.weight") => 4,
                _ if name.ends_with("k_proj.weight") => 2,
                _ => 0,
            };
            let values =
                if heads > 0 { interleaved(values, heads, shape[1]) } else { values.clone() };
            let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).expect("fits");
            (llama_cpp_name(name), QTensor::quantize(&tensor, dtype).expect("quantizes"))
        })
        .collect();
    let metadata: Vec<(&str, &Meta)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = quantized.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let mut file = fs::File::create(path).expect("creates");
    gguf_file::write(&mut file, &metadata, &tensors).expect("writes");
}

/// Rows i and `i + half` of a head come to stand at `2i` and `2i + 1`.
fn interleaved(values: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks(cols).collect();
    let half = rows.len() / heads / 2;
    let pairs =
        rows.chunks(2 * half).flat_map(|head| (0..half).flat_map(|i| [head[i], head[i + half]]));
    pairs.flatten().copied().collect()
}

fn llama_cpp_name(name: &str) -> String {
    let mut name =
        name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd");
    for (from, to) in [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ] {
        name = name.replace(from, to);
    }
    name
}
