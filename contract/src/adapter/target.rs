//! Which modules of the base a configuration targets, as PEFT decides it
//! (`check_target_module_exists` and `get_pattern_key` in `peft/tuners/tuners_utils.py` and
//! `peft/utils/other.py`).
//!
//! Patterns are Python's; those that mean something else or nothing here (look-around,
//! back-references) do not compile and are refused. Module paths are ASCII, so patterns match bytes.

use regex::bytes::{Regex, RegexBuilder};

/// Bounds the time that a customer's patterns can take, bytes of one compiled pattern.
const MAX_COMPILED_BYTES: usize = 32 << 10;

/// Why a pattern was refused.
#[derive(Debug, PartialEq)]
pub(super) struct PatternError(pub String);

/// `pattern` between `before` and `after`. It must stand by itself too, lest a bracket of its own
/// close the one around it.
fn compile(before: &str, pattern: &str, after: &str) -> Result<Regex, PatternError> {
    build(pattern)?;
    build(&format!("{before}(?:{pattern}){after}"))
}

fn build(pattern: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES * 8)
        .nest_limit(32)
        .build()
        .map_err(|e| match e {
            regex::Error::CompiledTooBig(_) => PatternError("it is too complex".into()),
            // The last line names the fault, those before draw it.
            other => {
                PatternError(other.to_string().lines().last().unwrap_or_default().trim().to_owned())
            }
        })
}

/// Python's `re.fullmatch`.
pub(super) fn full_match(pattern: &str) -> Result<Regex, PatternError> {
    compile("^", pattern, "$")
}

/// A module's name, or a pattern over whole paths.
#[derive(Debug, Clone)]
pub(super) enum Selector {
    /// A path, or its last parts.
    Names(Vec<String>),
    Pattern(Regex),
    AllLinear,
}

impl Selector {
    pub(super) fn selects(&self, path: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| is_named(path, name)),
            Self::Pattern(regex) => regex.is_match(path.as_bytes()),
            Self::AllLinear => true,
        }
    }
}

/// True when `name` is the path or its last parts.
pub(super) fn is_named(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// `layers_to_transform` with `layers_pattern`.
#[derive(Debug, Clone)]
pub(super) struct LayerFilter {
    pub(super) layers: Vec<u32>,
    /// Each finds the layer's number in its group `layer`.
    pub(super) patterns: Vec<Regex>,
}

impl LayerFilter {
    pub(super) fn new(layers: Vec<u32>, patterns: &[String]) -> Result<Self, PatternError> {
        let any = ["[^.]*".to_owned()];
        let patterns = if patterns.is_empty() { &any } else { patterns };
        let patterns = patterns.iter().map(|p| compile(r"^.*\.", p, r"\.(?<layer>\d+)\."));
        let patterns = patterns.collect::<Result<_, _>>()?;
        Ok(Self { layers, patterns })
    }

    pub(super) fn admits(&self, path: &str) -> bool {
        let index = self.patterns.iter().find_map(|p| p.captures(path.as_bytes()));
        let digits = index
            .and_then(|c| c.name("layer"))
            .and_then(|m| std::str::from_utf8(m.as_bytes()).ok());
        digits.and_then(|d| d.parse().ok()).is_some_and(|layer: u32| self.layers.contains(&layer))
    }
}

/// `rank_pattern` or `alpha_pattern`: the first key that matches a path, in the file's order, decides.
#[derive(Debug, Clone)]
pub(super) struct PatternMap<V> {
    entries: Vec<(Regex, V)>,
}

impl<V: Copy> PatternMap<V> {
    /// Errors carry the key that does not compile.
    pub(super) fn new(entries: &[(String, V)]) -> Result<Self, (String, PatternError)> {
        let entry = |(key, value): &(String, V)| {
            let regex = compile(r"^(?:.*\.)?", key, "$").map_err(|e| (key.clone(), e))?;
            Ok((regex, *value))
        };
        Ok(Self { entries: entries.iter().map(entry).collect::<Result<_, _>>()? })
    }

    pub(super) fn get(&self, path: &str) -> Option<V> {
        self.entries.iter().find(|(regex, _)| regex.is_match(path.as_bytes())).map(|(_, v)| *v)
    }
}
