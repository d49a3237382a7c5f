//! The adapter rules from the outside: the kit's real and broken adapters, and made-up ones.

mod config_rules;
mod hostile;
mod kit;
mod round_trip;

use super::testing::{AdapterFiles, RandomAdapter, smollm2_135m};
use super::{AdapterConfig, AdapterError, ContentError, Header, Inspected, inspect};
use crate::base_model::{BaseModelSpec, Linear};
use std::io::Cursor;

/// Two layers of a small model.
fn small_base() -> BaseModelSpec {
    BaseModelSpec {
        hidden_size: 16,
        intermediate_size: 24,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 4,
        ..smollm2_135m()
    }
}

fn inspect_files(files: &AdapterFiles, base: &BaseModelSpec) -> Result<Inspected, AdapterError> {
    inspect(&files.config, &mut Cursor::new(&files.weights), base).map_err(refusal)
}

fn refusal(error: ContentError) -> AdapterError {
    match error {
        ContentError::Refused(error) => error,
        ContentError::Read(error) => panic!("bytes in memory do not fail to read: {error}"),
    }
}

/// `files` with keys of its configuration replaced.
fn with_config(files: &AdapterFiles, changes: serde_json::Value) -> AdapterFiles {
    let mut config: serde_json::Value = serde_json::from_slice(&files.config).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    AdapterFiles { config: config.to_string().into_bytes(), weights: files.weights.clone() }
}
