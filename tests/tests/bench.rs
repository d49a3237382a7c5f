//! `lorikeet bench serve` against a node.

use anyhow::{Context, Result, ensure};
use lorikeet_tests::{Demo, demo};
use serde_json::Value;
use std::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_serve_measures_a_node_with_two_tenants_and_their_adapters() -> Result<()> {
    let mut demo = Demo::start().await?;
    let node = demo.add_node_with("simulated", &[("LORIKEET_DEVICE", "sim")]).await?;
    let keys: Vec<&str> = demo.facts.tenants.iter().map(|t| t.api_key.as_str()).collect();
    ensure!(keys.len() == 2, "the demo has two tenants");
    let file = demo.data().join("bench.json");
    let output = Command::new(demo::binary()?)
        .args(["bench", "serve", "--api", "chat", "--base-url", &node])
        .args(["--requests", "96", "--concurrency", "16", "--warm-up", "0.5"])
        .args(["--prompt-tokens", "16..32", "--output-tokens", "8"])
        .args(["--key-weights", "2,1", "--server-pid", &std::process::id().to_string()])
        .arg("--json")
        .arg(&file)
        .env("LORIKEET_API_KEY", keys.join(","))
        .output()?;
    let (table, errors) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success(), "{table}\n{errors}");
    ensure!(table.contains("TTFT") && errors.is_empty(), "{table}\n{errors}");

    let written = std::fs::read_to_string(&file)?;
    ensure!(keys.iter().all(|key| !written.contains(key)), "a key got into {written}");
    let document: Value = serde_json::from_str(&written)?;
    let report = &document["report"];
    ensure!(report["requests"] == 96 && report["failed"] == 0, "{written}");
    ensure!(report["times"]["ttft"]["p50"].as_f64().context("a time")? > 0.0, "{written}");
    // Two of three requests are the first tenant's.
    ensure!(report["tenants"][0]["requests"] == 64, "{written}");
    let machine = &document["setting"]["machine"];
    ensure!(machine["cores"].as_u64().context("cores")? > 0, "{written}");
    Ok(())
}

#[test]
fn bench_http_asks_the_same_of_a_node_over_http_and_of_its_engine() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let output = Command::new(demo::binary()?)
        .args(["bench", "http", "--device", "sim", "--concurrency", "4", "--requests", "12"])
        .args(["--prompt-tokens", "16", "--output-tokens", "8", "--repetitions", "2"])
        // No model is computed, so that nearly all is HTTP's.
        .args(["--at-most", "inf", "--json"])
        .arg(file.path())
        .output()?;
    let (table, errors) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success() && table.contains("HTTP over engine"), "{table}\n{errors}");
    let document: Value = serde_json::from_slice(&std::fs::read(file.path())?)?;
    let pairs = document["pairs"].as_array().context("pairs")?;
    ensure!(pairs.len() == 2, "{document}");
    for turn in pairs.iter().flat_map(|pair| [&pair["engine"], &pair["http"]]) {
        ensure!(turn["rows"] == 12 * (16 + 8 - 1), "{document}");
    }
    Ok(())
}
