//! The keys of `adapter_config.json`, one by one: read in their form, ignored, or refused by name.

use super::Names;
use crate::adapter::error::{AdapterError, cut, quoted};
use crate::adapter::json::UniqueMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

/// Most entries in a list or a pattern map.
const MAX_ENTRIES: usize = 1024;
/// Longest name or pattern, in bytes.
const MAX_TEXT_BYTES: usize = 512;

/// Keys that describe training or storage and leave the served result alone.
const COSMETIC: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Keys read by [`AdapterConfig::parse`](super::AdapterConfig::parse).
const SERVED: [&str; 12] = [
    "alpha_pattern",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> From<OneOrMany<T>> for Vec<T> {
    fn from(value: OneOrMany<T>) -> Self {
        match value {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

pub(super) struct Keys<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl Keys<'_> {
    /// The key's value, none when it is absent or null.
    pub(super) fn optional<T: DeserializeOwned>(
        &self,
        key: &str,
        form: &str,
    ) -> Result<Option<T>, AdapterError> {
        let Some((_, raw)) = self.0.iter().find(|(name, _)| name == key) else {
            return Ok(None);
        };
        serde_json::from_str(raw.get())
            .map_err(|_| invalid(format!("has {key} {}: it must be {form}", quoted(raw.get()))))
    }

    pub(super) fn required<T: DeserializeOwned>(
        &self,
        key: &str,
        form: &str,
    ) -> Result<T, AdapterError> {
        self.optional(key, form)?
            .ok_or_else(|| invalid(format!("has no {key}: it must be {form}, as PEFT writes it")))
    }

    pub(super) fn refuse_unserved(&self) -> Result<(), AdapterError> {
        let peft_type: String = self.required("peft_type", "\"LORA\"")?;
        if peft_type != "LORA" {
            return Err(unsupported(
                "peft_type",
                format!("{} adapters are not served, only LORA", quoted(&peft_type)),
            ));
        }
        let task_type: Option<String> = self.optional("task_type", "a string")?;
        if let Some(task) = task_type.filter(|t| t != "CAUSAL_LM") {
            return Err(unsupported(
                "task_type",
                format!("{} adapters are not served, only CAUSAL_LM", quoted(&task)),
            ));
        }
        for (key, raw) in &self.0 {
            if SERVED.contains(&key.as_str()) || COSMETIC.contains(&key.as_str()) {
                continue;
            }
            let value: Value = serde_json::from_str(raw.get()).map_err(|_| {
                invalid(format!("has {} with a value that does not read", quoted(key)))
            })?;
            refuse_unless_default(key, &value)?;
        }
        Ok(())
    }

    pub(super) fn pattern_map<T: DeserializeOwned>(
        &self,
        key: &str,
        form: &str,
        check: impl Fn(&str, T) -> Result<T, AdapterError>,
    ) -> Result<Vec<(String, T)>, AdapterError> {
        let form = format!("an object of patterns, each with {form}");
        let map: Option<UniqueMap<T>> = self.optional(key, &form)?;
        let entries = map.map(|m| m.0).unwrap_or_default();
        check_texts(key, entries.iter().map(|(pattern, _)| pattern.as_str()))?;
        entries
            .into_iter()
            .map(|(pattern, value)| {
                let value = check(&format!("{key} {}", quoted(&pattern)), value)?;
                Ok((pattern, value))
            })
            .collect()
    }

    pub(super) fn names(&self, key: &str) -> Result<Option<Names>, AdapterError> {
        let names: Option<Names> = self.optional(key, "a list of module names or a pattern")?;
        Ok(match names {
            Some(Names::List(mut list)) => {
                check_texts(key, list.iter().map(String::as_str))?;
                // PEFT keeps a set and writes it in any order.
                list.sort();
                list.dedup();
                (!list.is_empty()).then_some(Names::List(list))
            }
            Some(Names::Pattern(pattern)) => {
                check_texts(key, [pattern.as_str()])?;
                (!pattern.is_empty()).then_some(Names::Pattern(pattern))
            }
            None => None,
        })
    }

    pub(super) fn target_modules(&self) -> Result<Names, AdapterError> {
        self.names("target_modules")?.ok_or_else(|| {
            invalid("has no target_modules: it must list the modules that were trained")
        })
    }

    pub(super) fn layers_to_transform(&self) -> Result<Option<Vec<u32>>, AdapterError> {
        let layers: Option<OneOrMany<u32>> =
            self.optional("layers_to_transform", "a layer's number or a list of them")?;
        let mut layers = layers.map(Vec::from).unwrap_or_default();
        check_count("layers_to_transform", layers.len())?;
        layers.sort_unstable();
        layers.dedup();
        Ok((!layers.is_empty()).then_some(layers))
    }

    pub(super) fn layers_pattern(&self) -> Result<Vec<String>, AdapterError> {
        let patterns: Option<OneOrMany<String>> =
            self.optional("layers_pattern", "a pattern or a list of them")?;
        let mut patterns = patterns.map(Vec::from).unwrap_or_default();
        patterns.retain(|p| !p.is_empty());
        check_texts("layers_pattern", patterns.iter().map(String::as_str))?;
        Ok(patterns)
    }
}

/// Keys with a default that is not null, false or empty, and known keys whose effect is worth words.
fn refuse_unless_default(key: &str, value: &Value) -> Result<(), AdapterError> {
    let is_default = match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    };
    let text = value.as_str();
    let reason = match key {
        "bias" if is_default || text == Some("none") => return Ok(()),
        "bias" => "trained biases are not served: train with bias=\"none\"",
        // These start from other values but leave the base weights alone.
        "init_lora_weights"
            if is_default
                || value == &Value::Bool(true)
                || matches!(text, Some("gaussian" | "eva" | "orthogonal")) =>
        {
            return Ok(());
        }
        "init_lora_weights" => {
            "this start changes the base weights: convert the adapter to a plain one with save_pretrained(path_initial_model_for_weight_conversion=...)"
        }
        _ if is_default => return Ok(()),
        "modules_to_save" => "whole replaced modules are not served: train without modules_to_save",
        "lora_bias" => "biases beside lora_B are not served: train with lora_bias=False",
        "fan_in_fan_out" => "transposed weights are not served: the base model has none",
        "layer_replication" => "repeated layers are not served: train without layer_replication",
        "trainable_token_indices" => {
            "trained token embeddings are not served: train without trainable_token_indices"
        }
        "target_parameters" => "bare parameters cannot carry an adapter here: use target_modules",
        "alora_invocation_tokens" => "activated LoRA is not served: train a plain LoRA",
        _ => "this build does not know it, and it may change what the adapter computes",
    };
    Err(unsupported(key, reason))
}

fn check_count(key: &str, count: usize) -> Result<(), AdapterError> {
    if count > MAX_ENTRIES {
        return Err(invalid(format!(
            "has {count} entries in {key}, at most {MAX_ENTRIES} are read"
        )));
    }
    Ok(())
}

fn check_texts<'a>(
    key: &str,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<(), AdapterError> {
    let mut count = 0;
    for text in texts {
        count += 1;
        if text.is_empty() {
            return Err(invalid(format!("has an empty name in {key}")));
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(invalid(format!("has an entry over {MAX_TEXT_BYTES} bytes in {key}")));
        }
    }
    check_count(key, count)
}

pub(super) fn invalid(what: impl Into<String>) -> AdapterError {
    AdapterError::Config(what.into())
}

pub(super) fn unsupported(key: &str, reason: impl Into<String>) -> AdapterError {
    AdapterError::UnsupportedConfig { key: cut(key), reason: reason.into() }
}
