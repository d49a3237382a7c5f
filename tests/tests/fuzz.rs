//! What schemathesis makes of the two descriptions: no 5xx, no status that is not declared, and at least
//! three in ten served. `scripts/fuzz-api` by hand sends more.

use anyhow::{Context, Result, ensure};
use lorikeet_tests::Demo;
use serde_json::Value;
use std::process::{Command, Stdio};

/// `secrets` go by the environment: arguments are shown when it fails, and to the whole machine.
fn fuzz(arguments: &[&str], secrets: &[(&str, &str)]) -> Result<()> {
    let script = lorikeet_kit::workspace().join("scripts/fuzz-api");
    let output = Command::new(script)
        .args(arguments)
        .envs(secrets.iter().copied())
        .stdin(Stdio::null())
        .output()?;
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{arguments:?}:\n{printed}\n{errors}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_descriptions_allow_is_answered_as_they_say() -> Result<()> {
    // No model is computed: what is sent and answered is what is looked at.
    let demo = Demo::start_with(&[("LORIKEET_DEVICE", "sim")]).await?;
    let dashboard = &demo.facts.dashboard_url;
    let service: Value = reqwest::get(format!("{dashboard}/api/v1/service")).await?.json().await?;
    let model = service["base_model"].as_str().unwrap_or_default();
    let tenant = demo.tenant("Pirate Co.");

    let node = demo.facts.api_base_url.trim_end_matches("/v1");
    fuzz(&["node", node, model, "25"], &[("FUZZ_KEY", &tenant.api_key)])?;
    let operator = &demo.facts.operator;
    let secrets =
        [("FUZZ_KEY", tenant.manage_key.as_str()), ("FUZZ_PASSWORD", operator.password.as_str())];
    let adapter = tenant.adapters.first().context("a seeded adapter")?;
    fuzz(&["control-plane", dashboard, adapter, &operator.email, "20"], &secrets)
}
