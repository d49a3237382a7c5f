//! `lorikeet bench engine`: the engine's speed in this process, without HTTP and tokenizer.

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use lorikeet_contract::{BaseModelSpec, Linear};
use lorikeet_inference::backend::cpu::CpuConfig;
use lorikeet_inference::backend::cuda::{CudaConfig, check, probe};
use lorikeet_inference::backend::sim::SimConfig;
use lorikeet_inference::bench::{self, BenchConfig, BenchDevice, BenchReport, Percentiles};
use lorikeet_inference::scheduler::SchedulerConfig;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// A closed loop of equal requests on random weights.
    Engine(EngineArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
    Sim,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shape {
    #[value(name = "llama-3.1-8b")]
    Llama8b,
    #[value(name = "smollm2")]
    SmolLm2,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LoadFormat {
    /// Seeded random weights.
    Dummy,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Targets {
    All,
    Qkvo,
}

#[derive(Debug, Args)]
pub struct EngineArgs {
    #[arg(long, value_enum)]
    device: DeviceName,
    #[arg(long, value_enum)]
    shape: Shape,
    #[arg(long, value_enum, default_value = "dummy")]
    load_format: LoadFormat,
    /// Requests under way at any time; several, one measurement each.
    #[arg(long, value_delimiter = ',', default_value = "32")]
    concurrency: Vec<usize>,
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    #[arg(long, default_value_t = 128)]
    output_tokens: u32,
    /// Each request takes the next of these; 0: the base model alone.
    #[arg(long, default_value_t = 0)]
    adapters: u32,
    #[arg(long, default_value_t = 16)]
    rank: u32,
    #[arg(long, value_enum, default_value = "all")]
    targets: Targets,
    /// Rows of a step, prefill and decode together.
    #[arg(long, default_value_t = 512)]
    max_num_batched_tokens: usize,
    #[arg(long, default_value_t = 256)]
    max_num_seqs: usize,
    /// Tokens of the KV cache.
    #[arg(long)]
    kv_tokens: Option<u64>,
    /// Device memory for adapters, GiB.
    #[arg(long, default_value_t = 12)]
    adapter_gib: u64,
    /// Seconds before measuring.
    #[arg(long, default_value_t = 8)]
    warm_up: u64,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 16)]
    window: u64,
    /// Write the results to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

pub async fn run(command: BenchCommand) -> anyhow::Result<()> {
    let BenchCommand::Engine(args) = command;
    let card = match args.device {
        DeviceName::Cuda => Some(probe(0)?),
        DeviceName::Cpu | DeviceName::Sim => None,
    };
    println!("{:>11} {:>10} {:>24} {:>24} {:>24}", "", "output", "TTFT ms", "TPOT ms", "ITL ms");
    println!(
        "{:>11} {:>10} {:>24} {:>24} {:>24}",
        "concurrency", "tok/s", "p50 / p90 / p99", "p50 / p90 / p99", "p50 / p90 / p99"
    );
    let mut results = Vec::new();
    for &concurrency in &args.concurrency {
        let report = measure(&args, concurrency).await?;
        print(concurrency, &report);
        results.push(json!({ "concurrency": concurrency, "report": report }));
    }
    let Some(path) = &args.json else { return Ok(()) };
    let document = json!({
        "card": card.map(|c| json!({ "name": c.name, "driver_cuda": c.driver })),
        "arguments": format!("{args:?}"),
        "results": results,
    });
    let text = serde_json::to_string_pretty(&document)?;
    fs::write(path, text).with_context(|| path.display().to_string())
}

async fn measure(args: &EngineArgs, concurrency: usize) -> anyhow::Result<BenchReport> {
    let directory = std::env::temp_dir().join(format!("lorikeet-bench-{}", std::process::id()));
    let config = BenchConfig {
        device: device(args),
        spec: spec(args),
        scheduler: SchedulerConfig {
            max_num_seqs: args.max_num_seqs,
            max_num_batched_tokens: args.max_num_batched_tokens,
        },
        concurrency,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        adapters: args.adapters,
        rank: args.rank,
        linears: match args.targets {
            Targets::All => Linear::ALL.to_vec(),
            Targets::Qkvo => {
                vec![Linear::QProj, Linear::KProj, Linear::VProj, Linear::OProj]
            }
        },
        warm_up: Duration::from_secs(args.warm_up),
        window: Duration::from_secs(args.window),
        directory: directory.clone(),
    };
    let report = bench::run(config).await;
    // Best effort: the operating system empties its folder for temporary files anyway.
    let _ = fs::remove_dir_all(directory);
    report
}

fn spec(args: &EngineArgs) -> BaseModelSpec {
    let LoadFormat::Dummy = args.load_format;
    match args.shape {
        Shape::Llama8b => check::llama_8b(32),
        Shape::SmolLm2 => check::smollm2(30),
    }
}

fn device(args: &EngineArgs) -> BenchDevice {
    let adapter_bytes = args.adapter_gib << 30;
    match args.device {
        DeviceName::Cuda => BenchDevice::Cuda(CudaConfig {
            kv_tokens: args.kv_tokens,
            adapter_bytes,
            max_rows: args.max_num_batched_tokens as u32,
            ..CudaConfig::default()
        }),
        DeviceName::Cpu => {
            let default = CpuConfig::default();
            BenchDevice::Cpu(CpuConfig {
                kv_tokens: args.kv_tokens.map_or(default.kv_tokens, |n| n as usize),
                adapter_bytes,
                max_rows: args.max_num_batched_tokens,
                ..default
            })
        }
        DeviceName::Sim => BenchDevice::Sim(SimConfig::default()),
    }
}

fn print(concurrency: usize, report: &BenchReport) {
    let show = |p: Percentiles| format!("{:.2} / {:.2} / {:.2}", p.p50, p.p90, p.p99);
    println!(
        "{concurrency:>11} {:>10.0} {:>24} {:>24} {:>24}   ({} requests, {:.0} tok/s counted, start {:.1} s)",
        report.output_tokens_per_second,
        show(report.ttft),
        show(report.tpot),
        show(report.itl),
        report.requests,
        report.counted_tokens_per_second,
        report.start_seconds,
    );
}
