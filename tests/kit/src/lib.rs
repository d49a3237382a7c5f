//! Where the tests find the real model, the trained adapters, their reference outputs and the
//! broken uploads. `data/` holds everything but the weights of `kettles` (12 MB); a full kit beside
//! the checkout (`../shared/kit`) or in `LORIKEET_KIT` is preferred, and then nothing may be skipped.

pub mod allocations;
pub mod compare;
pub mod exposition;
mod pack;
mod port;
pub mod postgres;

pub use pack::packed_adapter;
pub use port::ReservedPort;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The kit's folder: `LORIKEET_KIT`, else `../shared/kit` beside the checkout, else the copy here.
pub fn dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("LORIKEET_KIT") {
        return dir.into();
    }
    let beside = workspace().join("../shared/kit");
    if beside.join("reference/index.json").is_file() { beside } else { own_dir() }
}

/// True when every adapter's weights are at hand, so that no test may skip one.
pub fn is_complete() -> bool {
    adapter_dir("kettles").join("adapter_model.safetensors").is_file()
}

fn own_dir() -> PathBuf {
    workspace().join(OWN)
}

/// From the checkout's root.
const OWN: &str = "tests/kit/data";

/// The checkout that the tests run in. Cargo tells a running test where its package lies; what the
/// compiler was told may be another checkout, which has the build directory in common.
pub fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let places: Vec<PathBuf> = package.into_iter().chain([built]).collect();
    let mut above = places.iter().flat_map(|place| place.ancestors());
    above.find(|dir| dir.join(OWN).is_dir()).expect("the kit is part of a checkout").to_owned()
}

pub fn adapter_dir(name: &str) -> PathBuf {
    dir().join("adapters").join(name)
}

/// The base model's GGUF, where `scripts/fetch-model` puts it. A test that needs it and does not find
/// it fails: `make test` fetches it first.
pub fn model_path() -> PathBuf {
    let file = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let path = match std::env::var_os("LORIKEET_MODEL") {
        Some(path) => PathBuf::from(path),
        None => cache_dir().join("models").join(file),
    };
    assert!(path.is_file(), "no model at {}: run scripts/fetch-model", path.display());
    path
}

/// Where fetched things lie, outside the checkout.
pub fn cache_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    var("LORIKEET_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("lorikeet")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/lorikeet")))
        .expect("HOME is set")
}

/// Tiny random models of every family, one folder each; `scripts/record-model-fixtures` says what is
/// in them.
pub fn families_dir() -> PathBuf {
    own_dir().join("families")
}

/// Small tokenizers of the families' kinds; `scripts/record-tokenizer-fixtures` says what is in them.
pub fn tokenizers_dir() -> PathBuf {
    own_dir().join("tokenizers")
}

#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    pub adapters: Vec<IndexEntry>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct IndexEntry {
    pub adapter: String,
    pub required: bool,
    pub sha256: String,
}

/// Expected outputs of one adapter, or of the base.
#[derive(Debug, Clone, Deserialize)]
pub struct Reference {
    pub adapter: Option<String>,
    /// How many modules have which rank and scale, by `r=16 scale=2`.
    #[serde(default)]
    pub modules: BTreeMap<String, usize>,
    pub min_margin: f64,
    pub cases: Vec<Case>,
    pub logits_check: LogitsCheck,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    pub id: String,
    pub messages: Vec<Message>,
    pub prompt: String,
    pub prompt_ids: Vec<u32>,
    /// Greedy, at most 32, with the final end token if it stopped.
    pub tokens: Vec<u32>,
    pub text: String,
    pub finish: String,
    /// Per generated token the five likeliest `(id, logprob)`.
    pub top5: Vec<Vec<(u32, f64)>>,
    pub min_margin: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct LogitsCheck {
    /// Index into `cases`.
    pub case: usize,
    pub prompt_positions: Vec<PositionLogits>,
    pub generated_positions: Vec<PositionLogits>,
}

/// Raw logits at one position: the 50 highest, and sums over the whole vocabulary.
#[derive(Debug, Clone, Deserialize)]
pub struct PositionLogits {
    pub ids: Vec<u32>,
    pub logits: Vec<f64>,
    pub logsumexp: f64,
    pub mean: f64,
    pub l2: f64,
}

/// One broken adapter and what must become of it.
#[derive(Debug, Clone, Deserialize)]
pub struct BadCase {
    pub name: String,
    /// dir or archive
    pub kind: String,
    /// reject, accept or accept-or-unsupported
    pub expect: String,
    pub why: String,
}

#[derive(Deserialize)]
struct BadManifest {
    cases: Vec<BadCase>,
}

pub fn index() -> Index {
    read_json(&dir().join("reference/index.json"))
}

/// `None`: the base model's.
pub fn reference(adapter: Option<&str>) -> Reference {
    read_json(&dir().join(format!("reference/{}.json", adapter.unwrap_or("base"))))
}

pub fn bad_cases() -> Vec<BadCase> {
    read_json::<BadManifest>(&dir().join("bad/MANIFEST.json")).cases
}

pub fn bad_path(name: &str) -> PathBuf {
    dir().join("bad").join(name)
}

pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
