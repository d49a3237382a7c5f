//! PEFT's meaning of each key, and the refusal of those that are not served.

use super::*;
use serde_json::{Value, json};

fn parse(changes: Value) -> Result<AdapterConfig, AdapterError> {
    let files = with_config(&RandomAdapter::default().files(&small_base()), changes);
    AdapterConfig::parse(&files.config)
}

const Q0: &str = "model.layers.0.self_attn.q_proj";
const V1: &str = "model.layers.1.self_attn.v_proj";

#[test]
fn the_first_pattern_in_the_files_order_decides_over_the_whole_path() {
    let config = AdapterConfig::parse(
        br#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj","v_proj"],
            "rank_pattern":{"layers\\.0\\..*":2,"q_proj":16,"proj":32},
            "alpha_pattern":{"self_attn.v_proj":20}}"#,
    )
    .unwrap();
    assert_eq!(config.rank(Q0), 2, "first in order, though the later key is the longer match");
    assert_eq!(config.rank("model.layers.1.self_attn.q_proj"), 16);
    assert_eq!(config.rank(V1), 4, "`proj` is no whole last part");
    assert_eq!(config.scale(V1), 5.0);
    assert_eq!(config.scale(Q0), 4.0);
}

#[test]
fn rslora_divides_by_the_root_of_the_modules_own_rank() {
    let changes = json!({"use_rslora": true, "lora_alpha": 6, "rank_pattern": {"q_proj": 9}});
    let config = parse(changes).unwrap();
    assert_eq!(config.scale(Q0), 2.0);
}

#[test]
fn targets_are_last_parts_whole_paths_patterns_or_all_linear() {
    let config = parse(json!({"target_modules": ["self_attn.q_proj"]})).unwrap();
    assert!(config.targets(Q0) && !config.targets(V1));
    let config = parse(json!({"target_modules": r".*\.1\..*_proj"})).unwrap();
    assert!(!config.targets(Q0) && config.targets(V1));
    let config = parse(json!({"target_modules": "q_proj"})).unwrap();
    assert!(!config.targets(Q0), "a pattern matches the whole path, as re.fullmatch does");
    let config = parse(json!({"target_modules": "all-linear"})).unwrap();
    assert!(config.targets("model.layers.0.mlp.down_proj"));
    let config = parse(json!({"exclude_modules": ["v_proj"]})).unwrap();
    assert!(config.targets(Q0) && !config.targets(V1));
}

#[test]
fn layers_to_transform_filters_names_but_not_whole_paths() {
    let config = parse(json!({"layers_to_transform": 1})).unwrap();
    assert!(!config.targets(Q0) && config.targets(V1));
    let config = parse(json!({"layers_to_transform": [1], "target_modules": [Q0]})).unwrap();
    assert!(config.targets(Q0));
    let named = json!({"layers_to_transform": [1], "layers_pattern": "layers"});
    assert!(parse(named).unwrap().targets(V1));
    let elsewhere = json!({"layers_to_transform": [1], "layers_pattern": ["blocks"]});
    assert!(!parse(elsewhere).unwrap().targets(V1));
}

#[test]
fn a_key_that_changes_the_mathematics_is_refused_by_name() {
    let cases = [
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([1, 2])),
        ("alora_invocation_tokens", json!([5])),
        ("target_parameters", json!(["experts"])),
        ("init_lora_weights", json!("pissa")),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"n": 1})),
        ("megatron_config", json!({"n": 1})),
        ("arrow_config", json!({"n": 1})),
        ("a_key_of_next_year", json!(1)),
        ("task_type", json!("SEQ_CLS")),
        ("peft_type", json!("LOHA")),
    ];
    for (key, value) in cases {
        let error = parse(json!({key: value})).unwrap_err();
        assert_eq!(error.code(), "unsupported_config", "{key}");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    let defaults = json!({"lora_bias": false, "bias": "none", "init_lora_weights": true,
        "use_qalora": false, "layer_replication": null, "a_key_of_next_year": {}, "eva_config": {"rho": 2.0}});
    assert!(parse(defaults).is_ok());
}

#[test]
fn a_value_of_the_wrong_form_is_named() {
    let cases = [
        ("r", json!(2.5)),
        ("r", json!(-1)),
        ("r", json!(null)),
        ("lora_alpha", json!(0)),
        ("use_dora", json!("yes")),
        ("target_modules", json!([])),
        ("target_modules", json!({"q_proj": 1})),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!(["q_proj"])),
        ("alpha_pattern", json!({"q_proj": "x"})),
        ("layers_to_transform", json!("all")),
    ];
    for (key, value) in cases {
        let error = parse(json!({key: value.clone()})).unwrap_err();
        assert_eq!(error.code(), "invalid_config", "{key} {value}");
        assert!(error.to_string().contains(key), "{key} {value}: {error}");
    }
}

#[test]
fn one_name_twice_is_refused_at_any_depth() {
    for config in [
        r#"{"peft_type":"LORA","r":4,"r":8}"#,
        r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj"],"rank_pattern":{"q":1,"q":2}}"#,
    ] {
        assert_eq!(AdapterConfig::parse(config.as_bytes()).unwrap_err().code(), "invalid_config");
    }
}

#[test]
fn patterns_that_cannot_be_served_are_refused_not_guessed() {
    for pattern in ["(?=q).*", r"(a)\1", "(", "a)|(b", "(((a{99}){99}){99})"] {
        let error = parse(json!({"rank_pattern": {pattern: 4}})).unwrap_err();
        assert!(error.to_string().contains("rank_pattern"), "{pattern}: {error}");
        let error = parse(json!({"target_modules": pattern})).unwrap_err();
        assert!(error.to_string().contains("target_modules"), "{pattern}: {error}");
    }
}

#[test]
fn tensors_and_targets_must_agree() {
    let base = small_base();
    let files = RandomAdapter::default().files(&base);
    let refuse = |changes| inspect_files(&with_config(&files, changes), &base).unwrap_err();
    let cases = [
        (json!({"target_modules": ["q_proj"]}), "unknown_tensor", "v_proj.lora_A"),
        (json!({"target_modules": ["q_proj", "v_proj", "o_proj"]}), "missing_tensor", "o_proj"),
        (
            json!({"target_modules": ["q_proj", "embed_tokens"]}),
            "unsupported_module",
            "embed_tokens",
        ),
        (json!({"target_modules": ".*"}), "unsupported_module", "lm_head"),
        (json!({"target_modules": "nothing"}), "unknown_target", "nothing"),
        (json!({"rank_pattern": {"v_proj": 2}}), "rank_mismatch", "v_proj.lora_A"),
    ];
    for (changes, code, cause) in cases {
        let error = refuse(changes);
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(cause), "{error}");
    }
    let dora = RandomAdapter { use_dora: true, ..RandomAdapter::default() }.files(&base);
    let plain = with_config(&dora, json!({"use_dora": false}));
    assert!(inspect_files(&plain, &base).unwrap_err().to_string().contains("use_dora"));
}
