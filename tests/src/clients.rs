//! The API's clients, where `scripts/setup` has put them.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// Runs `tests/clients/<script>` with the environment's Python and returns what it printed.
pub async fn run(script: &str, env: &[(&str, &str)]) -> Result<String> {
    run_with(&cached("clients/bin/python")?, script, env).await
}

/// Runs `tests/clients/<script>` with Node; the packages are in `NODE_MODULES`.
pub async fn run_node(script: &str, env: &[(&str, &str)]) -> Result<String> {
    let modules = cached("clients-node")?.display().to_string();
    run_with(Path::new("node"), script, &[env, &[("NODE_MODULES", &modules)]].concat()).await
}

async fn run_with(program: &Path, script: &str, env: &[(&str, &str)]) -> Result<String> {
    let path = lorikeet_kit::workspace().join("tests/clients").join(script);
    let output = Command::new(program)
        .arg(path)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script} failed:\n{text}\n{errors}");
    Ok(text)
}

fn cached(path: &str) -> Result<PathBuf> {
    let path = lorikeet_kit::cache_dir().join(path);
    ensure!(path.exists(), "no {}: run scripts/setup --tests", path.display());
    Ok(path)
}
