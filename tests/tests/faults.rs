//! `kill -9` of each part under load, twenty rounds each, and then: every final in the node's log is in
//! Postgres once, and nothing else is.

use anyhow::{Context, Result, ensure};
use lorikeet_tests::chat::Chat;
use lorikeet_tests::{Demo, ledger};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ROUNDS: usize = 20;
/// The base model on this prompt talks until it is cut off.
const PROMPT: &str = "Tell me a long story about a lorikeet that learns to count.";
const TOKENS: u32 = 60;

/// Chats of both tenants that run beside each round. What breaks when a part dies is not their matter.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(demo: &Demo) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for tenant in &demo.facts.tenants {
            for model in &tenant.adapters {
                let (stop, base) = (Arc::clone(&stop), demo.facts.api_base_url.clone());
                let (key, model) = (tenant.api_key.clone(), model.clone());
                tasks.push(tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        if let Ok(chat) =
                            Chat::start(&base, &key, &model, "Is this good?", 24).await
                        {
                            let _ = chat.finish().await;
                        } else {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }));
            }
        }
        Self { stop, tasks }
    }

    async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        Ok(())
    }
}

async fn begin(demo: &Demo) -> Result<Chat> {
    let (key, base) = (&demo.facts.tenants[0].api_key, &demo.facts.api_base_url);
    let mut chat = Chat::start(base, key, &base_model(demo).await?, PROMPT, TOKENS).await?;
    chat.chunks(5).await?;
    Ok(chat)
}

async fn base_model(demo: &Demo) -> Result<String> {
    let url = format!("{}/api/v1/service", demo.facts.dashboard_url);
    static NAME: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    let name = NAME.get_or_try_init(|| async {
        let service: serde_json::Value = reqwest::get(url).await?.json().await?;
        let id = service["base_model"].as_str().context("a base model")?;
        anyhow::Ok(id.to_owned())
    });
    Ok(name.await?.clone())
}

fn tokens(chat: &Chat) -> Result<u64> {
    chat.usage.as_ref().and_then(|u| u["completion_tokens"].as_u64()).context("usage in the stream")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_part_killed_at_any_moment_loses_or_doubles_usage() -> Result<()> {
    let mut demo = Demo::start().await?;
    base_model(&demo).await?;
    let log = demo.usage_log_dir()?;
    let mut delivered = Vec::new();

    for round in 0..ROUNDS {
        let load = Load::start(&demo);
        let chat = begin(&demo).await?;
        demo.kill("control-plane")?;
        delivered.push(chat.finish().await.with_context(|| format!("round {round}"))?);
        let new = begin(&demo).await.context("a new chat while the control plane is away")?;
        delivered.push(new.finish().await?);
        demo.restart("control-plane")?;
        demo.until_answers(&format!("{}/api/v1/service", demo.facts.dashboard_url)).await?;
        load.stop().await?;
    }

    for round in 0..ROUNDS {
        let load = Load::start(&demo);
        let chat = begin(&demo).await?;
        demo.kill("postgres")?;
        delivered.push(chat.finish().await.with_context(|| format!("round {round}"))?);
        delivered.push(begin(&demo).await.context("a new chat without Postgres")?.finish().await?);
        demo.restart("postgres")?;
        load.stop().await?;
    }
    demo.until_answers(&format!("{}/api/v1/service", demo.facts.dashboard_url)).await?;

    let mut broken = Vec::new();
    for _ in 0..ROUNDS {
        let load = Load::start(&demo);
        let chat = begin(&demo).await?;
        demo.kill("node")?;
        let (id, seen) = (chat.request_id.clone(), 5);
        ensure!(chat.finish().await.is_err(), "a killed node cannot end its answer");
        broken.push((id, seen));
        demo.restart("node")?;
        demo.until_answers(&demo.node_ready_url()).await?;
        load.stop().await?;
    }

    let operator = ledger::operator_pool(&demo).await?;
    let finals = ledger::until_settled(&operator, &log).await?;
    for chat in &delivered {
        let billed = finals.get(&chat.request_id);
        ensure!(
            billed == Some(&tokens(chat)?),
            "{} was delivered, billed {billed:?}",
            chat.request_id
        );
    }
    for (id, _) in &broken {
        let billed =
            finals.get(id).with_context(|| format!("no final of {id}, cut off by the kill"))?;
        ensure!(*billed <= u64::from(TOKENS), "{id} is billed {billed} tokens");
    }
    println!("{} finals, all in Postgres once; {} answers cut off", finals.len(), broken.len());
    Ok(())
}
