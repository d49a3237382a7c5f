//! The kit's trained adapters are served as its references say, its broken ones refused.

use super::*;
use crate::adapter::files;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn inspect_dir(dir: &Path, base: &BaseModelSpec) -> Result<Inspected, AdapterError> {
    let mut named = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        named.insert(name, fs::read(&path).unwrap());
    }
    files::check(named.iter().map(|(name, bytes)| (name.as_str(), bytes.len() as u64)))?;
    let mut weights = Cursor::new(&named[files::WEIGHTS_FILE]);
    inspect(&named[files::CONFIG_FILE], &mut weights, base).map_err(refusal)
}

#[test]
fn trained_adapters_get_the_ranks_and_scales_of_their_references() {
    let base = smollm2_135m();
    let mut served = 0;
    for entry in lorikeet_kit::index().adapters {
        let dir = lorikeet_kit::adapter_dir(&entry.adapter);
        if entry.adapter == "meow" {
            let error = inspect_dir(&dir, &base).unwrap_err();
            assert!(error.to_string().contains("lm_head"), "{error}");
            continue;
        }
        if entry.adapter == "kettles" && !lorikeet_kit::is_complete() {
            continue;
        }
        let plan =
            inspect_dir(&dir, &base).unwrap_or_else(|e| panic!("{}: {e}", entry.adapter)).plan;
        let mut counted: BTreeMap<String, usize> = BTreeMap::new();
        for m in &plan.modules {
            // The references print six digits.
            let scale = (f64::from(m.scale) * 1e5).round() / 1e5;
            *counted.entry(format!("r={} scale={scale}", m.rank)).or_default() += 1;
        }
        let reference = lorikeet_kit::reference(Some(&entry.adapter));
        assert_eq!(counted, reference.modules, "{}", entry.adapter);
        served += 1;
    }
    assert_eq!(served, if lorikeet_kit::is_complete() { 7 } else { 6 });
}

#[test]
fn every_broken_upload_of_the_kit_has_its_expected_outcome_and_names_the_cause() {
    let base = smollm2_135m();
    let mut refused = 0;
    for case in lorikeet_kit::bad_cases() {
        let path = lorikeet_kit::bad_path(&case.name);
        let result = if path.is_dir() {
            inspect_dir(&path, &base)
        } else {
            files::check([(case.name.as_str(), 1000)]).map(|()| panic!("{} passed", case.name))
        };
        match (case.expect.as_str(), result) {
            ("accept", result) => drop(result.unwrap_or_else(|e| panic!("{}: {e}", case.name))),
            ("reject" | "accept-or-unsupported", Err(error)) => {
                let (code, cause) = expected(&case.name);
                assert_eq!(error.code(), code, "{}: {error}", case.name);
                assert!(error.to_string().contains(cause), "{}: {error}", case.name);
                refused += 1;
            }
            (expect, result) => panic!("{}: {expect}, but {result:?}", case.name),
        }
    }
    assert_eq!(refused, 38);
}

/// The code of each refusal, and words that name its cause.
fn expected(case: &str) -> (&'static str, &'static str) {
    match case {
        "truncated_data" => ("invalid_safetensors", "cut off"),
        "truncated_header" => ("invalid_safetensors", "ends inside its header"),
        "empty_weights" => ("invalid_safetensors", "is empty"),
        "header_len_bomb" => ("invalid_safetensors", "1152921504606846976"),
        "header_not_json" | "header_is_array" => ("invalid_safetensors", "header"),
        "nan_tensor" => ("non_finite_value", "layers.0.self_attn.q_proj.lora_A.weight` holds NaN"),
        "inf_tensor" => ("non_finite_value", "layers.0.self_attn.v_proj.lora_B.weight` holds +Inf"),
        "rank_mismatch_ab" => ("rank_mismatch", "has rank 3, but lora_A of the same module says 2"),
        "rank_mismatch_config" => ("rank_mismatch", "has rank 2, but adapter_config.json says 4"),
        "unknown_target" => ("unknown_target", "foo_proj"),
        "wrong_hidden" => ("shape_mismatch", "[2, 1024], the base model needs [rank, 576]"),
        "layer_out_of_range" => ("layer_out_of_range", "layer 30"),
        "missing_lora_b" => ("missing_tensor", "v_proj` has no lora_B"),
        "missing_config" => ("missing_file", "adapter_config.json` is missing"),
        "missing_weights" => ("missing_file", "adapter_model.safetensors` is missing"),
        "config_not_json" => ("invalid_config", "does not read as JSON"),
        "config_r0" => ("invalid_config", "r 0"),
        "config_r100000" => ("invalid_config", "r 100000"),
        "config_alpha_string" => ("invalid_config", "sixteen"),
        "config_wrong_peft_type" => ("unsupported_config", "IA3"),
        "dora_without_magnitude" => ("missing_tensor", "lora_magnitude_vector"),
        "pickle_bin" => ("pickle_not_accepted", "adapter_model.bin"),
        "duplicate_keys" => ("invalid_safetensors", "occurs twice"),
        "overlapping_offsets" => ("invalid_safetensors", "share bytes"),
        "offsets_past_end" => ("invalid_safetensors", "data_offsets"),
        "shape_vs_bytes" => ("invalid_safetensors", "data_offsets"),
        "shape_overflow" => ("invalid_safetensors", "overflows"),
        "unknown_dtype" => ("unsupported_dtype", "F33"),
        "trailing_bytes" => ("invalid_safetensors", "4096 bytes after its last tensor"),
        "modules_to_save_norm" => ("unsupported_config", "modules_to_save"),
        archive => {
            assert!(archive.ends_with(".zip") || archive.ends_with(".tar"), "{archive}");
            ("archive_not_accepted", "archive")
        }
    }
}

#[test]
fn an_archive_under_the_name_of_the_weights_is_called_an_archive() {
    let config = fs::read(lorikeet_kit::bad_path("control_ok/adapter_config.json")).unwrap();
    for case in lorikeet_kit::bad_cases().into_iter().filter(|c| c.kind == "archive") {
        let bytes = fs::read(lorikeet_kit::bad_path(&case.name)).unwrap();
        let error = inspect(&config, &mut Cursor::new(bytes), &smollm2_135m())
            .map_err(refusal)
            .unwrap_err();
        assert_eq!(error.code(), "archive_not_accepted", "{}: {error}", case.name);
    }
}
