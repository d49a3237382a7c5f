//! Which of cublasLt's algorithms was the fastest for each product.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// What was picked on earlier starts, for this card and library.
#[derive(Default, Serialize, Deserialize)]
pub struct Picks {
    #[serde(skip)]
    path: Option<PathBuf>,
    #[serde(skip)]
    changed: bool,
    algorithms: BTreeMap<String, [u64; 8]>,
}

impl Picks {
    pub fn read(path: Option<PathBuf>) -> Self {
        let text = path.as_ref().and_then(|path| fs::read(path).ok());
        let read = text.and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        Self { path, ..read.unwrap_or_default() }
    }

    /// Writes new picks to disk.
    pub fn keep(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let Some(path) = &self.path else { return };
        let write = || {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            fs::write(path, serde_json::to_vec_pretty(self)?)
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "the picked products were not kept");
        }
    }

    pub fn get(&self, product: &str) -> Option<[u64; 8]> {
        self.algorithms.get(product).copied()
    }

    pub fn add(&mut self, product: String, algorithm: [u64; 8]) {
        self.algorithms.insert(product, algorithm);
        self.changed = true;
    }
}
