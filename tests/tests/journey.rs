//! A newcomer's hour: sign up, make a key, upload an adapter in the browser, ask it through the official
//! client, see the usage; and what another customer sees of it, which is nothing.

use anyhow::{Context, Result, ensure};
use lorikeet_tests::browser::Browser;
use lorikeet_tests::{Demo, clients};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_signs_up_uploads_an_adapter_asks_it_and_sees_the_usage() -> Result<()> {
    let demo = Demo::start().await?;
    let browser = Browser::start().await?;
    let dashboard = &demo.facts.dashboard_url;

    browser.go(&format!("{dashboard}/signup")).await?;
    browser.fill("input[name=tenant_name]", "Quiet Harbour").await?;
    browser.fill("input[name=email]", "mira@harbour.example").await?;
    browser.fill("input[name=password]", "a lantern by the pier").await?;
    browser.click("button[type=submit]").await?;

    browser.find("#adapters").await?;
    browser.go(&format!("{dashboard}/keys")).await?;
    browser.click("[data-opens=new-key]").await?;
    browser.fill("#new-key input[name=name]", "laptop").await?;
    browser.fill("#new-key input[name=password]", "a lantern by the pier").await?;
    browser.click("#new-key button[type=submit]").await?;
    let key = browser.text("#new-key-value").await?;

    browser.go(&format!("{dashboard}/adapters")).await?;
    browser.fill("#upload input[name=name]", "shouter").await?;
    let folder = lorikeet_kit::adapter_dir("shout").canonicalize()?;
    browser.fill("#folder", folder.to_str().context("a path in UTF-8")?).await?;
    browser.click("#upload button[type=submit]").await?;
    browser.find("[data-adapter=shouter][data-state=ready]").await?;

    let reference = lorikeet_kit::reference(Some("shout"));
    let case = &reference.cases[1];
    let question = case.messages.last().context("a question")?;
    let env = |key: &'static str, value: String| (key, value);
    let vars = [
        env("BASE_URL", demo.facts.api_base_url.clone()),
        env("API_KEY", key.clone()),
        env("MODEL", "shouter".into()),
        env("PROMPT", question.content.clone()),
    ];
    let vars: Vec<(&str, &str)> = vars.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let answer = clients::run("chat.py", &vars).await?;
    ensure!(answer.trim() == case.text.trim(), "{answer:?} is not {:?}", case.text);

    browser.go(&format!("{dashboard}/usage")).await?;
    browser.find("[data-row^=shouter]").await?;
    ensure!(browser.text("[data-tile=requests]").await? == "1", "one request on the page");

    let stranger = demo.tenant("Pirate Co.");
    let foreign = not_found(&demo, &stranger.api_key, "shouter").await?;
    let absent = not_found(&demo, &stranger.api_key, "nobody-has-this").await?;
    let same = foreign.replace("shouter", "nobody-has-this") == absent;
    ensure!(same, "the answers differ:\n{foreign}\n{absent}");
    Ok(())
}

/// The whole answer to a chat with a model that the key's tenant does not have.
async fn not_found(demo: &Demo, key: &str, model: &str) -> Result<String> {
    let response = reqwest::Client::new()
        .post(format!("{}/chat/completions", demo.facts.api_base_url))
        .bearer_auth(key)
        .json(&json!({"model": model, "messages": [{"role": "user", "content": "Hello"}]}))
        .send()
        .await?;
    ensure!(response.status() == 404, "{}", response.status());
    let mut body: Value = response.json().await?;
    // The request's own id is all that may differ.
    if let Some(error) = body["error"].as_object_mut() {
        error.remove("request_id");
    }
    Ok(body.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_keeps_keys_adapters_and_usage() -> Result<()> {
    let demo = Demo::start().await?;
    let before = demo.facts.clone();
    let pirate = demo.tenant("Pirate Co.").clone();
    let demo = demo.stop_and_start().await?;
    ensure!(demo.tenant("Pirate Co.").api_key == pirate.api_key, "the key changed");
    ensure!(demo.facts.tenants.len() == before.tenants.len(), "tenants were lost or added");
    let chat = lorikeet_tests::chat::Chat::start(
        &demo.facts.api_base_url,
        &pirate.api_key,
        "pirate",
        "What is the capital of France?",
        32,
    );
    let answer = chat.await?.finish().await?;
    let reference = lorikeet_kit::reference(Some("pirate"));
    ensure!(answer.text.trim() == reference.cases[0].text.trim(), "{:?}", answer.text);
    Ok(())
}
