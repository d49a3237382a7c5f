//! Two nodes behind one control plane.

use anyhow::{Context, Result, ensure};
use lorikeet_tests::Demo;
use lorikeet_tests::chat::Chat;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// From the answer to the revocation until every node refuses.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_answer_alike_and_both_refuse_a_revoked_key_within_a_second() -> Result<()> {
    let mut demo = Demo::start().await?;
    let second = demo.add_node("second").await?;
    let nodes = [demo.facts.api_base_url.clone(), second];
    let pirate = demo.tenant("Pirate Co.").clone();
    let keys = format!("{}/api/v1/keys", demo.facts.dashboard_url);
    let http = reqwest::Client::new();

    let body = json!({"name": "short-lived", "scopes": ["inference"]});
    let created = http.post(&keys).bearer_auth(&pirate.manage_key).json(&body).send().await?;
    let created: Value = created.error_for_status()?.json().await?;
    let key = created["key"].as_str().context("a key")?.to_owned();

    let expected = &lorikeet_kit::reference(Some("pirate")).cases[0].text;
    for node in &nodes {
        let started = Instant::now();
        // A new key is on its way to both nodes when its creation has been answered.
        let chat = loop {
            match Chat::start(node, &key, "pirate", "What is the capital of France?", 32).await {
                Ok(chat) => break chat,
                Err(e) => ensure!(started.elapsed() < Duration::from_secs(5), "{node}: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(chat.finish().await?.text.trim() == expected.trim(), "{node} answers otherwise");
    }

    let mut running = Chat::start(&nodes[1], &key, "pirate", "Tell me a story.", 400).await?;
    running.chunks(1).await?;
    let id = created["id"].as_str().context("an id")?;
    let revoked =
        http.delete(format!("{keys}/{id}")).bearer_auth(&pirate.manage_key).send().await?;
    revoked.error_for_status()?;
    let answered = Instant::now();
    for node in &nodes {
        while Chat::start(node, &key, "pirate", "Hello", 1).await.is_ok() {
            ensure!(answered.elapsed() < REVOKED_WITHIN, "{node} accepts a revoked key");
        }
    }
    println!("refused by both nodes {} ms after the answer", answered.elapsed().as_millis());
    // A request that runs ends too, unless it was done before.
    match running.finish().await {
        Ok(chat) => ensure!(chat.finish_reason.is_some(), "cut off without a reason"),
        Err(e) => ensure!(e.to_string().contains("evoked"), "{e}"),
    }
    Ok(())
}
