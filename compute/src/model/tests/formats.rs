//! The same tiny model in every format gives the same weights, and what would be computed wrongly is
//! refused by name.

use super::tiny::{self, Tensors};
use crate::model::fixture::base_model;
use crate::model::{ChatMessage, LoadProgress, LoadedModel, Rope, load};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Meta;
use half::bf16;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn tempdir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn loaded(path: &Path) -> LoadedModel {
    let progress = LoadProgress::default();
    assert_eq!(progress.part(), 0.0);
    let loaded = load(path, Some("tiny"), &progress).expect("the model loads");
    assert_eq!(progress.part(), 1.0);
    loaded
}

/// The message of an error that must occur.
fn refusal(path: &Path) -> String {
    match load(path, None, &LoadProgress::default()) {
        Ok(_) => panic!("{} was loaded", path.display()),
        Err(error) => error.to_string(),
    }
}

fn assert_weights(model: &LoadedModel, tensors: &Tensors) {
    let loaded = model.weights.tensors();
    assert!(loaded.keys().eq(tensors.keys()));
    for (name, (_, values)) in tensors {
        assert!(loaded[name].iter().map(|v| v.to_f32()).eq(values.iter().copied()), "{name}");
    }
}

#[test]
fn every_format_gives_the_same_weights_and_digest() {
    let tensors = tiny::tensors();
    let (single, sharded, dir) = (tempdir(), tempdir(), tempdir());
    let gguf = dir.path().join("tiny.gguf");
    tiny::write_directory(single.path(), &tiny::config());
    tiny::write_single(single.path(), Dtype::F32, &tensors);
    tiny::write_directory(sharded.path(), &tiny::config());
    tiny::write_shards(sharded.path(), [Dtype::BF16, Dtype::F16], &tensors);
    tiny::write_gguf(&gguf, GgmlDType::F16, &tiny::metadata(), &tensors);

    let models = [single.path(), sharded.path(), &gguf].map(loaded);
    for model in &models {
        assert_weights(model, &tensors);
        assert_eq!(model.weights.config, models[0].weights.config);
        let hello = ChatMessage::new("user", "½ ĉevalo");
        let inner = base_model().tokenizer.encode("½ ĉevalo", crate::model::Specials::AsText);
        let expected = [vec![1], inner.expect("encodes"), vec![2]].concat();
        assert_eq!(model.prompt(&[hello]).expect("a prompt"), expected);
    }
    let config = &models[0].weights.config;
    assert_eq!((config.spec.head_dim, config.spec.num_kv_heads), (8, 2));
    assert_eq!((&config.rope, config.rms_norm_eps), (&Rope::plain(500_000.0), 1e-6));
    assert_eq!((config.bos_token, config.eos_tokens.as_slice()), (Some(1), [0, 2].as_slice()));
    assert_ne!(config.spec.weights_digest, base_model().weights.config.spec.weights_digest);
}

#[test]
fn tied_embeddings_need_no_output_layer_and_ignore_one() {
    let mut tensors = tiny::tensors();
    let dir = tempdir();
    let mut config = tiny::config();
    config["tie_word_embeddings"] = json!(true);
    tiny::write_directory(dir.path(), &config);
    tiny::write_single(dir.path(), Dtype::BF16, &tensors);
    let with = loaded(dir.path()).weights;
    tensors.remove("lm_head.weight");
    tiny::write_single(dir.path(), Dtype::BF16, &tensors);
    let without = loaded(dir.path()).weights;
    assert!(with.lm_head.is_none() && without.lm_head.is_none());
    assert_eq!(with.digest(), without.digest());
}

#[test]
fn one_changed_value_changes_the_digest() {
    let mut weights = base_model().weights.clone();
    assert_eq!(weights.digest(), weights.config.spec.weights_digest);
    let data = &mut weights.layers[29].linears[6].data;
    let mut changed = data.to_vec();
    let last = changed.last_mut().expect("a value");
    *last = bf16::from_f32(last.to_f32() + 1.0);
    *data = changed.into();
    assert_ne!(weights.digest(), weights.config.spec.weights_digest);
}

#[test]
fn quantized_tensors_are_what_their_blocks_say() {
    let tensors = tiny::tensors();
    let dir = tempdir();
    let kinds = [
        (GgmlDType::Q4_0, 0.3),
        (GgmlDType::Q5_1, 0.1),
        (GgmlDType::Q8_0, 0.02),
        (GgmlDType::BF16, 0.0),
    ];
    for (dtype, tolerance) in kinds {
        let gguf = dir.path().join("tiny.gguf");
        tiny::write_gguf(&gguf, dtype, &tiny::metadata(), &tensors);
        let loaded = loaded(&gguf).weights;
        for (name, data) in loaded.tensors() {
            let pairs = data.iter().zip(&tensors[&name].1);
            let worst = pairs.map(|(a, b)| (a.to_f32() - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance, "{dtype:?} {name}: {worst}");
        }
    }
}

#[test]
fn a_hugging_face_variant_that_is_not_computed_is_refused_by_name() {
    let dir = tempdir();
    let variants: [(&str, Value, &str); 4] = [
        ("model_type", json!("qwen3_moe"), "the architecture qwen3_moe"),
        ("rope_scaling", json!({ "type": "longrope", "factor": 2.0 }), "rope scaling longrope"),
        ("rope_scaling", json!({ "type": "linear", "factor": 0.0 }), "rope's factor is 0"),
        ("num_key_value_heads", json!(3), "do not divide"),
    ];
    tiny::write_directory(dir.path(), &tiny::config());
    tiny::write_single(dir.path(), Dtype::BF16, &Tensors::new());
    for (key, value, named) in variants {
        let mut config = tiny::config();
        config[key] = value;
        tiny::write_json(&dir.path().join("config.json"), &config);
        let message = refusal(dir.path());
        assert!(message.contains(named), "{key}: {message}");
        assert!(message.contains(&*dir.path().to_string_lossy()), "{key}: {message}");
    }
}

#[test]
fn biases_that_the_configuration_names_must_be_there() {
    let dir = tempdir();
    let mut config = tiny::config();
    config["attention_bias"] = json!(true);
    tiny::write_directory(dir.path(), &config);
    tiny::write_single(dir.path(), Dtype::BF16, &tiny::tensors());
    let message = refusal(dir.path());
    assert!(message.contains("no tensor model.layers.0.self_attn.q_proj.bias"), "{message}");
}

#[test]
fn a_tensor_too_many_too_few_or_of_another_shape_is_named() {
    let dir = tempdir();
    tiny::write_directory(dir.path(), &tiny::config());
    let mut tensors = tiny::tensors();
    let name = "model.layers.1.self_attn.q_proj.weight";
    let bias = "model.layers.1.self_attn.q_proj.bias";
    let (shape, values) = tensors[name].clone();

    tensors.insert(bias.into(), (vec![2], vec![0.0; 2]));
    tiny::write_single(dir.path(), Dtype::BF16, &tensors);
    assert!(refusal(dir.path()).contains(bias));
    tensors.remove(bias);

    tensors.insert(name.into(), (vec![shape[0] / 2, shape[1] * 2], values.clone()));
    tiny::write_single(dir.path(), Dtype::BF16, &tensors);
    assert!(refusal(dir.path()).contains(&format!("{name} is [16, 64], expected [32, 32]")));

    tensors.remove(name);
    tiny::write_single(dir.path(), Dtype::BF16, &tensors);
    assert!(refusal(dir.path()).contains(&format!("no tensor {name}")));

    tensors.insert(name.into(), (shape, values));
    tiny::write_single(dir.path(), Dtype::F64, &tensors);
    assert!(refusal(dir.path()).contains("in F64 (bf16, f16 and f32 are served)"));
}

#[test]
fn a_gguf_variant_that_is_not_computed_is_refused_by_name() {
    let dir = tempdir();
    let gguf = dir.path().join("tiny.gguf");
    let text = |text: &str| Meta::String(text.into());
    let variants = [
        ("general.architecture", text("mamba"), "the architecture mamba"),
        ("llama.rope.scaling.type", text("longrope"), "rope scaling longrope"),
        ("llama.rope.dimension_count", Meta::U32(4), "llama.rope.dimension_count"),
        ("llama.expert_count", Meta::U32(8), "llama.expert_count"),
        ("llama.attention.sliding_window", text("wide"), "llama.attention.sliding_window"),
        ("tokenizer.ggml.model", text("rwkv"), "the tokenizer rwkv"),
        ("tokenizer.ggml.model", text("llama"), "no tokenizer.ggml.scores"),
        ("tokenizer.ggml.pre", text("deepseek-llm"), "the pre-tokenizer deepseek-llm"),
        ("llama.block_count", text("two"), "llama.block_count in its metadata has the wrong type"),
    ];
    let mut plain = tiny::metadata();
    for (key, value, named) in variants {
        let mut metadata: BTreeMap<String, Meta> = plain.clone();
        metadata.insert(key.into(), value);
        tiny::write_gguf(&gguf, GgmlDType::F16, &metadata, &Tensors::new());
        let message = refusal(&gguf);
        assert!(message.contains(named), "{key}: {message}");
    }
    plain.remove("tokenizer.chat_template");
    tiny::write_gguf(&gguf, GgmlDType::F16, &plain, &Tensors::new());
    assert!(refusal(&gguf).contains("without a chat template"));
}

#[test]
fn a_gguf_tensor_that_is_not_understood_is_named() {
    let dir = tempdir();
    let gguf = dir.path().join("tiny.gguf");
    let mut tensors = tiny::tensors();
    tensors.insert("blk.0.attn_sub_norm.weight".into(), (vec![4], vec![1.0; 4]));
    tiny::write_gguf(&gguf, GgmlDType::F16, &tiny::metadata(), &tensors);
    assert!(refusal(&gguf).contains("the tensor blk.0.attn_sub_norm.weight"));
    tensors.remove("blk.0.attn_sub_norm.weight");

    tensors.insert("rope_freqs.weight".into(), (vec![3], vec![1.0; 3]));
    tiny::write_gguf(&gguf, GgmlDType::F32, &tiny::metadata(), &tensors);
    assert!(refusal(&gguf).contains("3 rope factors for heads of 8"));
}

#[test]
fn a_path_that_is_no_model_says_what_one_is() {
    let dir = tempdir();
    assert!(refusal(dir.path()).contains("config.json"));
    assert!(refusal(&dir.path().join("absent.gguf")).contains("cannot read"));
    let other = dir.path().join("model.bin");
    fs::write(&other, "x").expect("writes");
    assert!(refusal(&other).contains("is not a model"));

    let cut = dir.path().join("cut.gguf");
    let whole = fs::read(lorikeet_kit::model_path()).expect("reads");
    for len in [0, 3, 100, 2 << 20, whole.len() - 1] {
        fs::write(&cut, &whole[..len]).expect("writes");
        assert!(refusal(&cut).contains("cut.gguf is damaged or incomplete"), "{len}");
    }

    tiny::write_directory(dir.path(), &tiny::config());
    assert!(refusal(dir.path()).contains("model.safetensors"));
    tiny::write_json(
        &dir.path().join("model.safetensors.index.json"),
        &json!({ "weight_map": { "a": "../b" } }),
    );
    assert!(refusal(dir.path()).contains("not a file of this directory"));
}

#[test]
fn a_model_is_named_after_its_file() {
    let spec = &base_model().weights.config.spec;
    assert_eq!(spec.id, "SmolLM2-135M-Instruct");
}
