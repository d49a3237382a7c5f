//! `lorikeet bench overload`: more adapters wanted than fit the device, against all of them there.

use super::engine::{Case, Setup};
use super::machine::Setting;
use super::median;
use super::table::{print, print_head};
use anyhow::bail;
use lorikeet_inference::bench::BenchReport;
use serde::Serialize;

/// What overload may cost at most.
const LEAST_THROUGHPUT: f64 = 0.65;
const MOST_TTFT: f64 = 3.0;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  \
    lorikeet bench overload --device cpu --shape smollm2 --warm-up 3 --window 12")]
pub struct Args {
    /// Adapters that are wanted equally, in turn
    #[arg(long, default_value_t = 16)]
    adapters: u32,
    /// Of them, how many fit the device in the second arm
    #[arg(long, default_value_t = 8)]
    adapter_device_slots: u32,
    /// Requests under way at any time
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    #[arg(long, default_value_t = 64)]
    prompt_tokens: usize,
    #[arg(long, default_value_t = 64)]
    output_tokens: u32,
    /// Both arms are run so often, one after the other
    #[arg(long, default_value_t = 1)]
    repetitions: u32,
    #[command(flatten)]
    setup: Setup,
}

#[derive(Serialize)]
struct Document {
    setting: Setting,
    /// Of the engine, defaults included.
    options: String,
    pairs: Vec<Pair>,
    /// Of tokens per second, median over the pairs.
    throughput: f64,
    /// Of p99 to the first token, median over the pairs.
    ttft_p99: f64,
}

#[derive(Serialize)]
struct Pair {
    all_fit: BenchReport,
    some_fit: BenchReport,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let setting = args.setup.setting()?;
    let case = |slots| Case {
        concurrency: args.concurrency,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        adapters: args.adapters,
        adapter_device_slots: slots,
    };
    print_head();
    let mut pairs = Vec::new();
    for _ in 0..args.repetitions.max(1) {
        let all_fit = args.setup.measure(case(None)).await?;
        print(&format!("{} fit", args.adapters), &all_fit);
        let some_fit = args.setup.measure(case(Some(args.adapter_device_slots))).await?;
        print(&format!("{} fit", args.adapter_device_slots), &some_fit);
        pairs.push(Pair { all_fit, some_fit });
    }
    let throughput = median(pairs.iter().map(|Pair { all_fit, some_fit }| {
        some_fit.counted_tokens_per_second / all_fit.counted_tokens_per_second
    }));
    let ttft_p99 =
        median(pairs.iter().map(|Pair { all_fit, some_fit }| some_fit.ttft.p99 / all_fit.ttft.p99));
    println!("throughput {:.1} % (at least {:.0} %)", throughput * 100.0, LEAST_THROUGHPUT * 100.0);
    println!("p99 time to first token {ttft_p99:.2} x (at most {MOST_TTFT:.0} x)");
    let options = format!("{:?}", args.setup);
    super::save(args.setup.json(), &Document { setting, options, pairs, throughput, ttft_p99 })?;
    if throughput < LEAST_THROUGHPUT || ttft_p99 > MOST_TTFT {
        bail!("overload costs more than it may");
    }
    Ok(())
}
