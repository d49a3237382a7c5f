//! PEFT's `adapter_config.json`, read strictly.
//!
//! Each key is served, known to leave the result alone, or refused by name; a key that this build
//! does not know is refused unless it holds a default (null, false or empty), because it may change
//! the mathematics.

use super::error::{AdapterError, cut, quoted};
use super::files::{self, CONFIG_FILE, MAX_CONFIG_BYTES};
use super::json::UniqueMap;
use super::target::{LayerFilter, PatternMap, Selector, full_match};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// Largest rank of a module.
pub const MAX_RANK: u32 = 512;
/// Most entries in a list or a pattern map.
const MAX_ENTRIES: usize = 1024;
/// Longest name or pattern, in bytes.
const MAX_TEXT_BYTES: usize = 512;

/// Keys that describe training or storage and leave the served result alone.
const COSMETIC: [&str; 12] = [
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
    "task_type",
];

/// A checked configuration. Ranks are 1 to [`MAX_RANK`], alphas finite and above zero.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    meaning: Meaning,
    targets: Selector,
    excluded: Option<Selector>,
    layers: Option<LayerFilter>,
    ranks: PatternMap<u32>,
    alphas: PatternMap<f64>,
}

/// What of the file decides the result, in a fixed form: the part of it that makes the digest.
#[derive(Debug, Clone, Serialize)]
struct Meaning {
    r: u32,
    lora_alpha: f64,
    rank_pattern: Vec<(String, u32)>,
    alpha_pattern: Vec<(String, f64)>,
    use_rslora: bool,
    use_dora: bool,
    target_modules: Names,
    exclude_modules: Option<Names>,
    layers_to_transform: Option<Vec<u32>>,
    layers_pattern: Vec<String>,
}

/// A list of names, or one pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Names {
    Pattern(String),
    List(Vec<String>),
}

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

impl AdapterConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, AdapterError> {
        files::check_size(CONFIG_FILE, bytes.len() as u64, MAX_CONFIG_BYTES)?;
        let entries: UniqueMap<&RawValue> = serde_json::from_slice(bytes)
            .map_err(|e| invalid(format!("does not read as JSON: {}", cut(&e.to_string()))))?;
        let keys = Keys(entries.0);
        keys.refuse_unserved()?;

        let alpha = |key: &str, value: f64| {
            let positive = value.is_finite() && value > 0.0;
            let error = || invalid(format!("has {key} {value}: it must be a number above 0"));
            if positive { Ok(value) } else { Err(error()) }
        };
        let rank = |key: &str, value: u32| match value {
            1..=MAX_RANK => Ok(value),
            _ => Err(invalid(format!("has {key} {value}: ranks from 1 to {MAX_RANK} are served"))),
        };
        let rank_pattern = keys.pattern_map("rank_pattern", "a positive integer", rank)?;
        let alpha_pattern = keys.pattern_map("alpha_pattern", "a number", alpha)?;
        let meaning = Meaning {
            r: rank("r", keys.required("r", "a positive integer")?)?,
            lora_alpha: alpha("lora_alpha", keys.required("lora_alpha", "a number")?)?,
            use_rslora: keys.optional("use_rslora", "true or false")?.unwrap_or(false),
            use_dora: keys.optional("use_dora", "true or false")?.unwrap_or(false),
            target_modules: keys.target_modules()?,
            exclude_modules: keys.names("exclude_modules")?,
            layers_to_transform: keys.layers_to_transform()?,
            layers_pattern: keys.layers_pattern()?,
            rank_pattern,
            alpha_pattern,
        };
        Self::compile(meaning)
    }

    fn compile(meaning: Meaning) -> Result<Self, AdapterError> {
        let bad = |key: &str, pattern: &str, e: super::target::PatternError| {
            unsupported(
                key,
                format!("the pattern {} does not serve: {}", quoted(pattern), cut(&e.0)),
            )
        };
        let selector = |key: &str, names: &Names| match names {
            Names::Pattern(p) => full_match(p).map(Selector::Pattern).map_err(|e| bad(key, p, e)),
            Names::List(list) => Ok(Selector::Names(list.clone())),
        };
        let targets = match &meaning.target_modules {
            Names::Pattern(p) if p.eq_ignore_ascii_case("all-linear") => Selector::AllLinear,
            names => selector("target_modules", names)?,
        };
        let by_name = matches!(meaning.target_modules, Names::List(_));
        if !by_name && meaning.layers_to_transform.is_some() {
            return Err(unsupported(
                "layers_to_transform",
                "PEFT allows it only where target_modules is a list",
            ));
        }
        let layers = meaning.layers_to_transform.clone().map(|layers| {
            LayerFilter::new(layers, &meaning.layers_pattern)
                .map_err(|e| bad("layers_pattern", &meaning.layers_pattern.join(", "), e))
        });
        Ok(Self {
            targets,
            excluded: match &meaning.exclude_modules {
                Some(names) => Some(selector("exclude_modules", names)?),
                None => None,
            },
            layers: layers.transpose()?,
            ranks: PatternMap::new(&meaning.rank_pattern)
                .map_err(|(key, e)| bad("rank_pattern", &key, e))?,
            alphas: PatternMap::new(&meaning.alpha_pattern)
                .map_err(|(key, e)| bad("alpha_pattern", &key, e))?,
            meaning,
        })
    }

    /// True when the module at `path` (`model.layers.0.self_attn.q_proj`) carries an adapter.
    pub fn targets(&self, path: &str) -> bool {
        if self.excluded.as_ref().is_some_and(|e| e.selects(path)) {
            return false;
        }
        let layer_admits = || self.layers.as_ref().is_none_or(|l| l.admits(path));
        match &self.targets {
            // A whole path is targeted whatever layers_to_transform says, as in PEFT.
            Selector::Names(names) => {
                names.iter().any(|n| n == path) || self.targets.selects(path) && layer_admits()
            }
            other => other.selects(path),
        }
    }

    /// The names in `target_modules`; empty where it is a pattern.
    pub(super) fn target_names(&self) -> &[String] {
        match &self.targets {
            Selector::Names(names) => names,
            _ => &[],
        }
    }

    /// The pattern in `target_modules`, where it is one and not `all-linear`.
    pub(super) fn has_target_pattern(&self) -> bool {
        matches!(self.targets, Selector::Pattern(_))
    }

    /// `layers_to_transform`, empty where it is absent.
    pub fn layers(&self) -> &[u32] {
        self.meaning.layers_to_transform.as_deref().unwrap_or_default()
    }

    pub fn use_dora(&self) -> bool {
        self.meaning.use_dora
    }

    pub fn rank(&self, path: &str) -> u32 {
        self.ranks.get(path).unwrap_or(self.meaning.r)
    }

    /// What `B (A x)` is multiplied by: alpha / r, or alpha / sqrt(r) with rsLoRA
    /// (arXiv 2312.03732).
    pub fn scale(&self, path: &str) -> f32 {
        let rank = f64::from(self.rank(path));
        let alpha = self.alphas.get(path).unwrap_or(self.meaning.lora_alpha);
        let divisor = if self.meaning.use_rslora { rank.sqrt() } else { rank };
        (alpha / divisor) as f32
    }

    /// The configuration without cosmetic keys, equal for equal meaning.
    pub(super) fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(&self.meaning).expect("plain data with string keys")
    }
}

struct Keys<'a>(Vec<(String, &'a RawValue)>);

impl Keys<'_> {
    /// The key's value, none when it is absent or null.
    fn optional<T: DeserializeOwned>(
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

    fn required<T: DeserializeOwned>(&self, key: &str, form: &str) -> Result<T, AdapterError> {
        self.optional(key, form)?
            .ok_or_else(|| invalid(format!("has no {key}: it must be {form}, as PEFT writes it")))
    }

    fn refuse_unserved(&self) -> Result<(), AdapterError> {
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
            // serde_json reads no number out of its range, which is a default of nothing either.
            let value: Value = serde_json::from_str(raw.get()).map_err(|_| {
                invalid(format!("has {} with a value that does not read", quoted(key)))
            })?;
            refuse_unless_default(key, &value)?;
        }
        Ok(())
    }

    fn pattern_map<T: DeserializeOwned>(
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

    fn names(&self, key: &str) -> Result<Option<Names>, AdapterError> {
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

    fn target_modules(&self) -> Result<Names, AdapterError> {
        self.names("target_modules")?.ok_or_else(|| {
            invalid("has no target_modules: it must list the modules that were trained")
        })
    }

    fn layers_to_transform(&self) -> Result<Option<Vec<u32>>, AdapterError> {
        let layers: Option<OneOrMany<u32>> =
            self.optional("layers_to_transform", "a layer's number or a list of them")?;
        let mut layers = layers.map(Vec::from).unwrap_or_default();
        check_count("layers_to_transform", layers.len())?;
        layers.sort_unstable();
        layers.dedup();
        Ok((!layers.is_empty()).then_some(layers))
    }

    fn layers_pattern(&self) -> Result<Vec<String>, AdapterError> {
        let patterns: Option<OneOrMany<String>> =
            self.optional("layers_pattern", "a pattern or a list of them")?;
        let mut patterns = patterns.map(Vec::from).unwrap_or_default();
        patterns.retain(|p| !p.is_empty());
        check_texts("layers_pattern", patterns.iter().map(String::as_str))?;
        Ok(patterns)
    }
}

/// Keys read by [`AdapterConfig::parse`].
const SERVED: [&str; 11] = [
    "alpha_pattern",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
];

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

fn invalid(what: impl Into<String>) -> AdapterError {
    AdapterError::Config(what.into())
}

fn unsupported(key: &str, reason: impl Into<String>) -> AdapterError {
    AdapterError::UnsupportedConfig { key: cut(key), reason: reason.into() }
}
