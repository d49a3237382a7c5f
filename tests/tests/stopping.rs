//! A node that is told to stop, as the process that it is.

use anyhow::{Context, Result, ensure};
use lorikeet_tests::chat::Chat;
use lorikeet_tests::{Demo, ledger};
use reqwest::StatusCode;
use serde_json::Value;
use std::time::{Duration, Instant};

const PROMPT: &str = "Tell me a long story about a lorikeet that learns to count.";

async fn begin(demo: &Demo, max_tokens: u32) -> Result<Chat> {
    let tenant = demo.tenant("Pirate Co.");
    let model = tenant.adapters.first().context("an adapter")?;
    Chat::start(&demo.facts.api_base_url, &tenant.api_key, model, PROMPT, max_tokens).await
}

/// One demo for both, because a start takes its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_told_to_stop_ends_in_order_and_told_twice_at_once() -> Result<()> {
    let mut demo = Demo::start().await?;
    clients_are_turned_away_first_streams_end_whole_and_usage_arrives(&mut demo).await?;
    a_second_signal_ends_it_at_once(&mut demo).await
}

async fn clients_are_turned_away_first_streams_end_whole_and_usage_arrives(
    demo: &mut Demo,
) -> Result<()> {
    demo.restart_with("node", &[("LORIKEET_DRAIN_GRACE_SECONDS", "2")])?;
    demo.until_answers(&demo.node_ready_url()).await?;
    let mut running = begin(demo, 300).await?;
    running.chunks(3).await?;
    demo.terminate("node")?;

    let started = Instant::now();
    let not_ready = loop {
        let answer = reqwest::get(demo.node_ready_url()).await?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            break answer.json::<Value>().await?;
        }
        ensure!(started.elapsed() < Duration::from_secs(1), "still ready");
    };
    ensure!(not_ready["reason"] == "the node is draining", "{not_ready}");
    let late = begin(demo, 4).await.context("served in the grace time")?.finish().await?;
    let whole = running.finish().await.context("the stream that ran")?;
    let (status, stopped) = (demo.ended("node").await?, started.elapsed());
    ensure!(status.success(), "{status}");
    ensure!(stopped >= Duration::from_millis(1900), "no grace: {stopped:?}");
    for chat in [&whole, &late] {
        ensure!(chat.finish_reason.is_some() && chat.usage.is_some(), "cut off: {}", chat.text);
    }

    let operator = ledger::operator_pool(demo).await?;
    let events = ledger::events(&operator).await?;
    for chat in [&whole, &late] {
        ensure!(events.contains_key(&chat.request_id), "shipped before the node ended");
    }
    Ok(())
}

async fn a_second_signal_ends_it_at_once(demo: &mut Demo) -> Result<()> {
    demo.restart_with("node", &[("LORIKEET_DRAIN_GRACE_SECONDS", "30")])?;
    demo.until_answers(&demo.node_ready_url()).await?;
    demo.terminate("node")?;
    let started = Instant::now();
    while reqwest::get(demo.node_ready_url()).await?.status().is_success() {
        ensure!(started.elapsed() < Duration::from_secs(5), "still ready");
    }
    demo.terminate("node")?;
    let status = demo.ended("node").await?;
    ensure!(status.code() == Some(128 + 15), "{status}");
    ensure!(started.elapsed() < Duration::from_secs(10), "it waited for its grace");
    Ok(())
}
