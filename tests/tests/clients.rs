//! The clients that customers come with, against a running node.

use anyhow::{Result, ensure};
use lorikeet_tests::{Demo, clients};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_clients_litellm_and_langchain_get_what_they_expect() -> Result<()> {
    let demo = Demo::start().await?;
    let pirate = demo.tenant("Pirate Co.");
    let node = &demo.process("node")?.env;
    let metrics = format!("http://{}/metrics", node["LORIKEET_METRICS_LISTEN"]);
    let service = format!("{}/api/v1/service", demo.facts.dashboard_url);
    let service: serde_json::Value = reqwest::get(service).await?.json().await?;
    let vars = [
        ("BASE_URL", demo.facts.api_base_url.as_str()),
        ("METRICS_URL", &metrics),
        ("API_KEY", &pirate.api_key),
        ("MANAGE_KEY", &pirate.manage_key),
        ("MODEL", service["base_model"].as_str().unwrap_or_default()),
        ("ADAPTER", "pirate"),
    ];
    for script in ["openai_client.py", "litellm_client.py", "langchain_client.py"] {
        let printed = clients::run(script, &vars).await?;
        ensure!(printed.ends_with("ok\n"), "{script}: {printed}");
    }
    let printed = clients::run_node("openai_client.mjs", &vars).await?;
    ensure!(printed == "ok\n", "{printed}");
    Ok(())
}
