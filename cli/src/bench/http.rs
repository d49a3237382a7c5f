//! `lorikeet bench http`: what HTTP, server-sent events and detokenisation cost. One node in this process;
//! the same requests go through its API, from a client of its own process, and straight into its engine,
//! in turn. What a turn costs is this process's time alone.

use super::machine::Setting;
use super::median;
use super::serve::api::Prompt;
use super::serve::schedule::{Lengths, Pick, Planned, Schedule, Share, Workload};
use crate::cache;
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use lorikeet_compute::backend::cpu::CpuConfig;
use lorikeet_compute::backend::sim::SimConfig;
use lorikeet_contract::TenantId;
use lorikeet_inference::bench::{BenchDevice, BenchNode, BenchNodeConfig, cpu_seconds};
use lorikeet_inference::scheduler::SchedulerConfig;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::process::Command;
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceName {
    Cpu,
    /// No model is computed: tokens are made up, at a small GPU's pace
    Sim,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example, the node's log apart:\n  lorikeet bench http --threads 2 2>access.log"
)]
pub struct Args {
    /// A GGUF file or a Hugging Face directory [default: the model that scripts/fetch-model fetches]
    #[arg(long, env = "LORIKEET_MODEL", value_name = "PATH")]
    model: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// Of the CPU backend [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Requests under way at any time, each a stream over HTTP
    #[arg(long, default_value_t = 32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: u32,
    /// Requests of a turn
    #[arg(long, default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    #[arg(long, default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    #[arg(long, default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    output_tokens: u32,
    /// Pairs of turns
    #[arg(long, default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Processor time over HTTP, over that of the engine alone, which is too much
    #[arg(long, value_name = "RATIO", default_value_t = 1.05)]
    at_most: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Document {
    setting: Setting,
    /// Defaults included.
    options: String,
    pairs: Vec<Pair>,
    /// Of processor time, median over the pairs.
    ratio: f64,
}

#[derive(Serialize)]
struct Pair {
    engine: Turn,
    http: Turn,
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.http.cpu_ms_per_output_token / self.engine.cpu_ms_per_output_token
    }
}

/// What the same requests came to.
#[derive(Debug, Clone, Copy, Serialize)]
struct Turn {
    cpu_ms_per_output_token: f64,
    seconds: f64,
    steps: u64,
    /// Token positions of prompts and answers.
    rows: u64,
}

#[derive(Clone, Copy)]
enum Way {
    Engine,
    Http,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let directory =
        std::env::temp_dir().join(format!("lorikeet-bench-http-{}", std::process::id()));
    let measured = measure(&args, &directory).await;
    // Best effort: the operating system empties its folder for temporary files anyway.
    let _ = fs::remove_dir_all(&directory);
    let pairs = measured?;
    let ratios: Vec<f64> = pairs.iter().map(Pair::ratio).collect();
    let ratio = median(ratios.iter().copied());
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    let apart = median(pairs.iter().map(|Pair { engine, http }| {
        http.cpu_ms_per_output_token - engine.cpu_ms_per_output_token
    }));
    println!(
        "HTTP over engine: x {ratio:.4} ({least:.4} to {most:.4}), {:.0} us a token (at most x {})",
        apart * 1e3,
        args.at_most
    );
    let document =
        Document { setting: Setting::new(None), options: format!("{args:?}"), pairs, ratio };
    super::save(args.json.as_deref(), &document)?;
    if ratio > args.at_most {
        bail!("HTTP costs more than it may");
    }
    Ok(())
}

async fn measure(args: &Args, directory: &Path) -> anyhow::Result<Vec<Pair>> {
    let node = Arc::new(BenchNode::start(args.node(directory)?).await?);
    // What is set up with the first requests is nobody's.
    for way in [Way::Engine, Way::Http] {
        turn(args, &node, way, args.concurrency, args.seed).await?;
    }
    println!(
        "{:>6} {:>8} {:>14} {:>8} {:>10} {:>10}",
        "pair", "through", "CPU ms/token", "steps", "rows/step", "seconds"
    );
    let mut pairs = Vec::new();
    for index in 0..u64::from(args.repetitions) {
        // Prompts that have not been seen, or they would be found in the cache.
        let seed = args.seed.wrapping_add(1 + index);
        let through = |way| turn(args, &node, way, args.requests, seed);
        let (engine, http) = if index % 2 == 0 {
            (through(Way::Engine).await?, through(Way::Http).await?)
        } else {
            let http = through(Way::Http).await?;
            (through(Way::Engine).await?, http)
        };
        for (name, turn) in [("engine", engine), ("HTTP", http)] {
            println!(
                "{:>6} {name:>8} {:>14.4} {:>8} {:>10.2} {:>10.1}",
                index + 1,
                turn.cpu_ms_per_output_token,
                turn.steps,
                turn.rows as f64 / turn.steps as f64,
                turn.seconds
            );
        }
        pairs.push(Pair { engine, http });
    }
    if let Some(node) = Arc::into_inner(node) {
        node.stop().await?;
    }
    Ok(pairs)
}

impl Args {
    fn node(&self, directory: &Path) -> anyhow::Result<BenchNodeConfig> {
        let default = CpuConfig::default();
        let threads = self.threads.unwrap_or(default.threads);
        Ok(BenchNodeConfig {
            model: self.model.clone().map_or_else(cache::model, Ok)?,
            device: match self.device {
                DeviceName::Cpu => BenchDevice::Cpu(CpuConfig { threads, ..default }),
                DeviceName::Sim => BenchDevice::Sim(SimConfig::default()),
            },
            scheduler: SchedulerConfig::default(),
            // One tenant does not get the whole queue.
            max_requests: 2 * self.concurrency as usize + 2,
            directory: directory.to_owned(),
        })
    }

    /// As `lorikeet bench serve` draws them.
    fn requests(&self, count: u32, seed: u64) -> Vec<Planned> {
        let workload = Workload {
            seed,
            tenants: vec![Share { weight: 1, models: 1 }],
            pick: Pick::RoundRobin,
            prompt_tokens: Lengths::exactly(self.prompt_tokens),
            output_tokens: Lengths::exactly(self.output_tokens),
            arrivals: None,
        };
        Schedule::new(workload).take(count as usize).collect()
    }
}

/// Closed loop: each request follows one that has ended.
async fn turn(
    args: &Args,
    node: &Arc<BenchNode>,
    way: Way,
    count: u32,
    seed: u64,
) -> anyhow::Result<Turn> {
    let own = std::process::id();
    let used = || cpu_seconds(own).context("the processor time of a process is Linux's to tell");
    let metrics = node.engine.metrics();
    let done = || {
        let rows = metrics.prefill_rows.get() + metrics.decode_rows.get();
        (metrics.step_rows.count(), rows)
    };
    let ((steps_before, rows_before), began, cpu_before) = (done(), Instant::now(), used()?);
    match way {
        Way::Engine => through_engine(args, node, count, seed).await?,
        Way::Http => through_http(args, node, count, seed).await?,
    }
    let (cpu, seconds) = (used()? - cpu_before, began.elapsed().as_secs_f64());
    let (steps, rows) = done();
    let (steps, rows) = (steps - steps_before, rows - rows_before);
    // The last token of an answer is drawn and not fed.
    let of_one = u64::from(args.prompt_tokens) + u64::from(args.output_tokens) - 1;
    let expected = u64::from(count) * of_one;
    ensure!(
        rows == expected,
        "{rows} rows were computed, not {expected}: the work was not the same"
    );
    let tokens = f64::from(count) * f64::from(args.output_tokens);
    Ok(Turn { cpu_ms_per_output_token: cpu * 1e3 / tokens, seconds, steps, rows })
}

async fn through_engine(
    args: &Args,
    node: &Arc<BenchNode>,
    count: u32,
    seed: u64,
) -> anyhow::Result<()> {
    let planned = Arc::new(Mutex::new(args.requests(count, seed).into_iter()));
    // Not the one that asks over HTTP: what that has left in the prefix cache is not found.
    let tenant = TenantId::new();
    let mut clients = JoinSet::new();
    for _ in 0..args.concurrency {
        let (planned, node) = (planned.clone(), node.clone());
        clients.spawn(async move {
            let next = || planned.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(planned) = next() {
                let prompt = Prompt { seed: planned.prompt_seed, tokens: planned.prompt_tokens };
                node.ask_engine(tenant, prompt.ids(), planned.output_tokens).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

/// Through `lorikeet bench serve`, whose time is its own.
async fn through_http(args: &Args, node: &BenchNode, count: u32, seed: u64) -> anyhow::Result<()> {
    let options = [
        ("--base-url", node.api_base_url.clone()),
        ("--model", node.model.clone()),
        ("--concurrency", args.concurrency.to_string()),
        ("--requests", count.to_string()),
        ("--prompt-tokens", args.prompt_tokens.to_string()),
        ("--output-tokens", args.output_tokens.to_string()),
        ("--seed", seed.to_string()),
        ("--warm-up", "0".to_owned()),
    ];
    let output = Command::new(std::env::current_exe()?)
        .args(["bench", "serve", "--ignore-eos"])
        .args(options.iter().flat_map(|(name, value)| [*name, value.as_str()]))
        .env("LORIKEET_API_KEY", node.key.reveal())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        bail!("the client failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
