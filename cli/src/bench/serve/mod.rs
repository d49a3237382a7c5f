//! `lorikeet bench serve`: load over HTTP, against any server that speaks OpenAI's API.
//!
//! ```text
//! schedule (pure, seeded) ─► load (closed or open loop) ─► request ─► report
//!                                                          api: bodies and events
//! ```

pub mod api;
pub mod load;
pub mod report;
pub mod request;
pub mod schedule;
#[cfg(test)]
mod tests;

use super::machine::Setting;
use anyhow::{Context, bail};
use api::{Api, BodyOptions};
use load::{Length, Pace, Run};
use report::{Objective, Report};
use request::{Target, Tenant};
use schedule::{Arrivals, Lengths, Pick, Share, Workload};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    # 16 requests at a time, each with the tenant's next adapter\n  \
    lorikeet bench serve --api-key lk_live_... --concurrency 16 --without SmolLM2-135M-Instruct\n  \
    # 20 requests a second (Poisson), adapters by popularity, one JSON file\n  \
    lorikeet bench serve --api-key lk_live_... --request-rate 20 --pick zipf --duration 60 \\\n    \
    --slo ttft:500 --slo tpot:50 --json result.json\n  \
    # two tenants, one ten times as busy\n  \
    lorikeet bench serve --api-key lk_live_A,lk_live_B --key-weights 10,1 --request-rate 30\n  \
    # llama.cpp's server, its adapters by number\n  \
    lorikeet bench serve --api llama-server --base-url http://127.0.0.1:8080 --model base,0,1,2")]
pub struct Args {
    /// The server; for OpenAI's API it includes /v1
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7710/v1")]
    base_url: String,
    /// What the server speaks
    #[arg(long, value_enum, default_value = "completions")]
    api: Api,
    /// API keys, one for each tenant
    #[arg(long = "api-key", env = "LORIKEET_API_KEY", hide_env_values = true, value_name = "KEY")]
    #[arg(value_delimiter = ',')]
    api_keys: Vec<String>,
    /// How often each key's turn comes [default: equally]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    key_weights: Vec<u32>,
    /// Models and adapters to ask for [default: all that each key finds at GET /v1/models]
    #[arg(long = "model", value_name = "NAME", value_delimiter = ',')]
    models: Vec<String>,
    /// Models to leave out
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    without: Vec<String>,
    /// round-robin, uniform, zipf or zipf:EXPONENT, each over one tenant's models
    #[arg(long, default_value = "round-robin")]
    pick: Pick,
    /// Closed loop: so many requests are always under way
    #[arg(long, value_name = "N", default_value_t = 16)]
    concurrency: usize,
    /// Open loop: so many requests a second, however the server fares
    #[arg(long, value_name = "RATE", conflicts_with = "concurrency")]
    request_rate: Option<f64>,
    /// 1 is a Poisson process, less comes in bursts, inf is a steady beat
    #[arg(long, value_name = "SHAPE", default_value_t = 1.0, requires = "request_rate")]
    burstiness: f64,
    /// Open loop: one more than this many under way is not sent, and counts as failed
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_in_flight: usize,
    /// Length of prompts: a number, or a range as in 32..128
    #[arg(long, value_name = "N", default_value = "64")]
    prompt_tokens: Lengths,
    /// Length of answers
    #[arg(long, value_name = "N", default_value = "64")]
    output_tokens: Lengths,
    /// Ask for answers of exactly that length (an extension of vLLM, llama.cpp and Lorikeet)
    #[arg(long)]
    ignore_eos: bool,
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Load without counting, before measuring
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    warm_up: f64,
    /// Measure for so long [default: 20]
    #[arg(long, value_name = "SECONDS", conflicts_with = "requests")]
    duration: Option<f64>,
    /// Measure so many requests
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// The same seed sends the same requests, in the same order, at the same times
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A request that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    timeout: f64,
    /// Objectives for goodput: ttft, tpot or latency in milliseconds, as in ttft:500
    #[arg(long = "slo", value_name = "OBJECTIVE", value_delimiter = ',')]
    objectives: Vec<Objective>,
    /// The server's process on this machine, to measure its processor time
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Write the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Document {
    setting: Setting,
    /// The load, defaults included.
    options: String,
    report: Report,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let setting = Setting::new(None);
    let (options, report) = measure(&args).await?;
    println!("{report}");
    let all_failed = report.failed == report.requests;
    super::save(args.json.as_deref(), &Document { setting, options, report })?;
    if all_failed {
        bail!("no request was answered");
    }
    Ok(())
}

/// The whole load in words, and what came of it.
async fn measure(args: &Args) -> anyhow::Result<(String, Report)> {
    let target = Arc::new(target(args).await?);
    let workload = workload(args, &target)?;
    let pace = match args.request_rate {
        Some(_) => Pace::Arrivals { max_in_flight: args.max_in_flight },
        None => Pace::Concurrency(args.concurrency),
    };
    let length = match args.requests {
        Some(count) => Length::Requests(count),
        None => Length::Time(seconds("duration", args.duration.unwrap_or(20.0))?),
    };
    let tenants = target.tenants.len();
    let warm_up = seconds("warm-up", args.warm_up)?;
    let BodyOptions { temperature, ignore_eos } = target.options;
    let options = format!(
        "{:?}, {workload:?}, {pace:?}, {length:?}, warm-up {warm_up:?}, temperature {temperature}, \
         ignore_eos {ignore_eos}",
        args.api
    );
    let run = Run { target, workload, pace, warm_up, length, server: args.server_pid };
    let measured = run.measure().await;
    Ok((options, Report::new(&measured, tenants, &args.objectives)))
}

async fn target(args: &Args) -> anyhow::Result<Target> {
    let http = request::client(args.api)?;
    let base_url = args.base_url.trim_end_matches('/').to_owned();
    let keys: Vec<Option<String>> = match args.api_keys.as_slice() {
        [] => vec![None],
        keys => keys.iter().cloned().map(Some).collect(),
    };
    let mut tenants = Vec::new();
    for key in keys {
        let mut models = args.models.clone();
        if models.is_empty() {
            let listed = args.api.models(&http, &base_url, key.as_deref()).await;
            models = listed.with_context(|| {
                format!("{base_url} does not list its models; --model names them")
            })?;
        }
        models.retain(|model| !args.without.contains(model));
        if models.is_empty() {
            bail!("no model is left to ask for: --model names them");
        }
        tenants.push(Tenant { key, models });
    }
    Ok(Target {
        http,
        api: args.api,
        base_url,
        tenants,
        options: BodyOptions { temperature: args.temperature, ignore_eos: args.ignore_eos },
        timeout: seconds("timeout", args.timeout)?,
    })
}

fn workload(args: &Args, target: &Target) -> anyhow::Result<Workload> {
    let count = target.tenants.len();
    let weights = match args.key_weights.as_slice() {
        [] => vec![1; count],
        weights if weights.len() == count => weights.to_vec(),
        weights => bail!("--key-weights has {} for {count} keys", weights.len()),
    };
    let arrivals = args.request_rate.map(|rate| {
        if rate > 0.0 && rate.is_finite() && args.burstiness > 0.0 {
            return Ok(Arrivals { rate, burstiness: args.burstiness });
        }
        bail!("--request-rate and --burstiness are above zero, and the rate has an end");
    });
    if args.concurrency == 0 || args.max_in_flight == 0 {
        bail!("at least one request must be under way: --concurrency and --max-in-flight");
    }
    let shares = weights.iter().zip(&target.tenants);
    Ok(Workload {
        seed: args.seed,
        tenants: shares.map(|(&weight, t)| Share { weight, models: t.models.len() }).collect(),
        pick: args.pick,
        prompt_tokens: args.prompt_tokens.clone(),
        output_tokens: args.output_tokens.clone(),
        arrivals: arrivals.transpose()?,
    })
}

fn seconds(name: &str, value: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value)
        .with_context(|| format!("--{name} {value}: seconds are wanted"))
}
