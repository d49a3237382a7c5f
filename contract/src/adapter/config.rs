//! PEFT's `adapter_config.json`, read strictly.
//!
//! Each key is served, known to leave the result alone, or refused by name; a key that this build
//! does not know is refused unless it holds a default (null, false or empty), because it may change
//! the mathematics.

mod keys;

use super::error::{AdapterError, cut, quoted};
use super::files::{self, CONFIG_FILE, MAX_CONFIG_BYTES};
use super::json::UniqueMap;
use super::target::{LayerFilter, PatternMap, Selector, full_match};
use keys::{Keys, invalid, unsupported};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Largest rank of a module.
pub const MAX_RANK: u32 = 512;

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
