//! The engine panics in the middle of answers, in the real node under the demo's own eyes.

use anyhow::{Context, Result, ensure};
use lorikeet_tests::chat::Chat;
use lorikeet_tests::{Demo, ledger};
use serde_json::{Value, json};
use std::time::Duration;

/// The simulated device takes 5 ms a step: the panic comes after about three quarters of a second.
const PANIC_AT_STEP: &str = "150";

async fn ask(base: &str, key: &str, model: &str, max_tokens: u32) -> Result<reqwest::Response> {
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": max_tokens,
        "ignore_eos": true,
    });
    let url = format!("{base}/chat/completions");
    Ok(reqwest::Client::new().post(url).bearer_auth(key).json(&body).send().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_panic_requests_fail_with_503_usage_is_kept_and_the_node_serves_again() -> Result<()>
{
    let vars = [("LORIKEET_DEVICE", "sim"), ("LORIKEET_SIM_PANIC_AT_STEP", PANIC_AT_STEP)];
    let mut demo = Demo::start_with(&vars).await?;
    let tenant = demo.facts.tenants[0].clone();
    let (base, key, model) = (demo.facts.api_base_url.clone(), tenant.api_key, &tenant.adapters[0]);
    let log = demo.usage_log_dir()?;

    let mut stream = Chat::start(&base, &key, model, "Count.", 1000).await?;
    stream.chunks(5).await?;
    let whole = tokio::spawn({
        let (base, key, model) = (base.clone(), key.clone(), model.clone());
        async move { ask(&base, &key, &model, 1000).await }
    });
    let ready = demo.node_ready_url();
    let unready = tokio::spawn(async move {
        loop {
            let answer = reqwest::get(&ready).await?;
            if !answer.status().is_success() {
                return anyhow::Ok((answer.status(), answer.json::<Value>().await?));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });

    let id = stream.request_id.clone();
    let broken =
        stream.finish().await.err().context("a stream whose engine panics has no good end")?;
    ensure!(broken.to_string().contains("node_stopped"), "{broken:#}");
    let whole = whole.await??;
    ensure!(whole.status() == 503, "{}", whole.status());
    let whole_id = whole.headers()["x-request-id"].to_str()?.to_owned();
    let body: Value = whole.json().await?;
    ensure!(body["error"]["code"] == "node_stopped", "{body}");
    let (status, body) = unready.await??;
    ensure!(status == 503 && body["ready"] == false, "{status} {body}");

    demo.until_restarted("node").await?;
    demo.until_answers(&demo.node_ready_url()).await?;
    let again = ask(&base, &key, model, 5).await?;
    ensure!(again.status() == 200, "{}: {}", again.status(), again.text().await?);
    ensure!(demo.log().contains("its engine stopped"), "{}", demo.log());

    let operator = ledger::operator_pool(&demo).await?;
    let finals = ledger::until_settled(&operator, &log).await?;
    let streamed = *finals.get(&id).context("the broken stream has a final")?;
    ensure!((5..150).contains(&streamed), "{streamed} tokens had been delivered");
    ensure!(finals.get(&whole_id) == Some(&0), "nothing of the other had been: {finals:?}");
    Ok(())
}
