//! The official clients, in the virtual environment that `scripts/setup` makes.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// Runs `tests/clients/<script>` with the environment's Python and returns what it printed.
pub async fn run(script: &str, env: &[(&str, &str)]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    let output = Command::new(interpreter()?)
        .arg(path)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .await
        .context("starting python")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script} failed:\n{text}\n{errors}");
    Ok(text)
}

fn interpreter() -> Result<PathBuf> {
    let python = lorikeet_kit::cache_dir().join("clients/bin/python");
    ensure!(python.is_file(), "no {}: run scripts/setup", python.display());
    Ok(python)
}
