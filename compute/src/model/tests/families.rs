//! Every family against Transformers: the slow forward pass, which every backend is held to, and both
//! file formats.

use crate::model::fixture::families::{FAMILIES, Family, directory, family, family_from_gguf};
use crate::model::hugging_face::HuggingFace;
use crate::model::reference::{ReferenceAdapter, ReferenceModel};
use crate::model::{ModelConfig, ModelError, ModelWeights, Rope, RopeScaling, SlidingWindow, Yarn};
use lorikeet_contract::Linear;
use serde_json::{Value, json};
use std::fs;

/// Logits are of the size of 5; both sides compute in f32.
const TOLERANCE: f32 = 1e-3;

/// The largest distance from what Transformers computes, over all prompts.
fn distance(weights: &ModelWeights, family: &Family, with_adapter: bool) -> f32 {
    let model = ReferenceModel::new(weights).expect("plain tensors");
    let adapter = family.adapter.as_ref().filter(|_| with_adapter).map(|(header, file)| {
        ReferenceAdapter::from_artifact(header, file).expect("plain tensors")
    });
    let mut worst: f32 = 0.0;
    for case in &family.cases {
        let logits = model.forward(&case.tokens, adapter.as_ref()).expect("a forward pass");
        let expected = if with_adapter { &case.adapted } else { &case.base };
        assert_eq!(expected.len(), case.positions.len());
        for (position, expected) in case.positions.iter().zip(expected) {
            let pairs = logits[*position].iter().zip(expected);
            worst = pairs.map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
        }
    }
    worst
}

#[test]
fn every_family_gives_the_logits_of_transformers() {
    for name in FAMILIES {
        let family = family(name);
        let distance = distance(&family.weights, &family, false);
        assert!(distance < TOLERANCE, "{name}: {distance}");
    }
}

#[test]
fn adapters_of_qwen_give_the_logits_of_peft() {
    for name in ["qwen2", "qwen3"] {
        let family = family(name);
        let distance = distance(&family.weights, &family, true);
        assert!(distance < TOLERANCE, "{name}: {distance}");
    }
}

#[test]
fn a_family_is_the_same_from_both_file_formats() {
    let mut checked = 0;
    for name in FAMILIES {
        let Some(gguf) = family_from_gguf(name) else { continue };
        let family = family(name);
        let distance = distance(&gguf, &family, false);
        assert!(distance < TOLERANCE, "{name}: {distance}");
        // Also their identity, so that an adapter for one is an adapter for the other.
        assert_eq!(gguf.config.spec, family.weights.config.spec, "{name}");
        assert_eq!(gguf.config.biased, family.weights.config.biased, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 5);
}

/// What makes each family its own shows in the recorded logits: without it they are far off.
#[test]
fn a_part_left_out_shows_in_the_logits() {
    type Mistake = fn(&mut ModelWeights);
    let no_scaling: Mistake = |w| w.config.rope.scaling = RopeScaling::None;
    let no_window: Mistake = |w| w.config.sliding_window = None;
    let window_everywhere: Mistake = |w| {
        let window = w.config.sliding_window.as_mut().expect("it has a window");
        window.layers.fill(true);
    };
    let no_attention_factor: Mistake = |w| {
        let RopeScaling::Yarn(yarn) = &mut w.config.rope.scaling else { panic!("it has YaRN") };
        yarn.attention_factor = 1.0;
    };
    let no_key_norm: Mistake = |w| {
        let norms = w.layers[1].head_norms.as_mut().expect("it has norms");
        norms.key.fill(1.0);
    };
    let no_value_bias: Mistake = |w| w.layers[0].biases[Linear::VProj.index()] = None;
    let no_output_bias: Mistake = |w| w.layers[0].biases[Linear::OProj.index()] = None;
    let no_gate_bias: Mistake = |w| w.layers[0].biases[Linear::GateProj.index()] = None;
    let no_down_bias: Mistake = |w| w.layers[1].biases[Linear::DownProj.index()] = None;
    let mistakes = [
        ("llama-llama3", no_scaling),
        ("llama-linear", no_scaling),
        ("llama-linear", no_output_bias),
        ("llama-linear", no_gate_bias),
        ("llama-linear", no_down_bias),
        ("mistral-window", no_window),
        ("qwen2", no_value_bias),
        ("qwen2-window-yarn", no_window),
        ("qwen2-window-yarn", window_everywhere),
        ("qwen2-window-yarn", no_scaling),
        ("qwen3", no_key_norm),
        ("qwen3-yarn", no_attention_factor),
    ];
    for (name, plant) in mistakes {
        let family = family(name);
        let mut weights = family.weights.clone();
        plant(&mut weights);
        let distance = distance(&weights, &family, false);
        assert!(distance > 100.0 * TOLERANCE, "{name}: {distance}");
    }
}

/// The configuration of a family's directory after some keys are set, null to leave one out.
fn configured(name: &str, keys: Value) -> Result<ModelConfig, ModelError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let copy = |file: &str| fs::copy(directory(name).join(file), dir.path().join(file));
    copy("model.safetensors").expect("copies");
    let mut config: Value = lorikeet_kit::read_json(&directory(name).join("config.json"));
    for (key, value) in keys.as_object().expect("an object") {
        config[key] = value.clone();
        if value == "absent" {
            config.as_object_mut().expect("an object").remove(key);
        }
    }
    fs::write(dir.path().join("config.json"), config.to_string()).expect("writes");
    HuggingFace::open(dir.path())?.config(name)
}

fn config(name: &str, keys: Value) -> ModelConfig {
    configured(name, keys).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn refusal(name: &str, keys: Value) -> String {
    configured(name, keys.clone()).err().unwrap_or_else(|| panic!("{keys} is served")).to_string()
}

#[test]
fn a_window_is_where_transformers_has_it() {
    let everywhere = |positions| Some(SlidingWindow { positions, layers: vec![true; 2] });
    let mistral = |keys| config("mistral-window", keys).sliding_window;
    assert_eq!(mistral(json!({})), everywhere(20));
    assert_eq!(mistral(json!({ "sliding_window": null })), None);
    assert_eq!(mistral(json!({ "sliding_window": "absent" })), everywhere(4096));

    let qwen = |keys| config("qwen2-window-yarn", keys).sliding_window;
    let layers = |layers: [bool; 3]| Some(SlidingWindow { positions: 20, layers: layers.to_vec() });
    assert_eq!(qwen(json!({})), layers([false, true, true]));
    assert_eq!(qwen(json!({ "max_window_layers": 2 })), layers([false, false, true]));
    assert_eq!(qwen(json!({ "max_window_layers": 3 })), None);
    assert_eq!(qwen(json!({ "max_window_layers": "absent" })), None);
    assert_eq!(qwen(json!({ "use_sliding_window": false })), None);
    // Transformers 5 spells the layers out.
    let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    assert_eq!(qwen(json!({ "layer_types": types })), layers([true, false, true]));
    assert_eq!(config("qwen3", json!({})).sliding_window, None);
    assert_eq!(config("llama-llama3", json!({ "sliding_window": 8 })).sliding_window, None);
}

#[test]
fn rope_is_read_in_its_old_and_its_new_form() {
    let scaling = |keys| config("qwen3", keys).rope;
    let old = json!({ "rope_parameters": "absent", "rope_theta": 5000.0,
        "rope_scaling": { "type": "linear", "rope_type": "linear", "factor": 2.0 } });
    let new = json!({ "rope_parameters":
        { "rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0 } });
    let expected = Rope { theta: 5000.0, scaling: RopeScaling::Linear { factor: 2.0 } };
    assert_eq!(scaling(old), expected);
    assert_eq!(scaling(new), expected);
    let nothing = json!({ "rope_parameters": "absent" });
    assert_eq!(scaling(nothing), Rope::plain(10_000.0));
}

#[test]
fn yarn_reaches_the_context_that_its_factor_gives() {
    let yarn = |parameters: Value| {
        config("qwen3", json!({ "max_position_embeddings": 64, "rope_parameters": parameters }))
    };
    let stated = yarn(json!({ "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 64, "attention_factor": 1.5, "beta_fast": 16 }));
    assert_eq!(stated.spec.context_length, 256);
    let expected = Yarn {
        factor: 4.0,
        original_context: 64,
        beta_fast: 16.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: 1.5,
    };
    assert_eq!(stated.rope.scaling, RopeScaling::Yarn(expected));
    let derived = yarn(json!({ "rope_type": "yarn", "original_max_position_embeddings": 16 }));
    let RopeScaling::Yarn(derived) = derived.rope.scaling else { panic!("YaRN") };
    assert_eq!((derived.factor, derived.original_context), (4.0, 16));
    assert!((derived.attention_factor - 1.138_629_4).abs() < 1e-6);
}

#[test]
fn what_no_decoder_here_computes_is_refused_by_name_and_with_what_to_do() {
    let rope = |kind: &str| json!({ "rope_parameters": { "rope_type": kind, "factor": 8.0 } });
    let partial = json!({ "rope_parameters": { "partial_rotary_factor": 0.5 } });
    let cases = [
        (json!({ "model_type": "qwen3_moe" }), "the architecture qwen3_moe (llama, mistral"),
        (json!({ "model_type": "gpt2", "hidden_size": "absent" }), "the architecture gpt2"),
        (rope("longrope"), "rope scaling longrope (default, linear, llama3 and yarn"),
        (rope("dynamic"), "rope scaling dynamic"),
        (rope("llama3"), "rope scaling llama3 without low_freq_factor"),
        (partial, "partial_rotary_factor"),
        (json!({ "hidden_act": "gelu" }), "the activation gelu"),
        (json!({ "quantization_config": { "bits": 4 } }), "quantization_config); use"),
        (
            json!({ "use_sliding_window": true, "sliding_window": 8,
                "layer_types": ["full_attention", "linear_attention"] }),
            "the layer type linear_attention",
        ),
        (
            json!({ "use_sliding_window": true, "sliding_window": 8,
                "layer_types": ["full_attention"] }),
            "1 layer_types for 2 layers",
        ),
    ];
    for (keys, named) in cases {
        let message = refusal("qwen3", keys);
        assert!(message.contains(named), "{named}: {message}");
    }
}
