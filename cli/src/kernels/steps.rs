//! `lorikeet kernels steps`: where a step's time goes.

use crate::bench::engine::{KvDtype, Quantization, Shape};
use anyhow::Context;
use clap::Args;
use lorikeet_compute::backend::cuda::check::{self, StepRows, StepTime, StepsConfig};
use lorikeet_compute::backend::cuda::{CudaConfig, probe};
use lorikeet_compute::model::ModelConfig;
use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Clone, Copy)]
struct Rows(StepRows);

impl FromStr for Rows {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a number"));
        let (decode, prompts) = text.split_once('+').unwrap_or((text, "0"));
        let rows = StepRows { decode: number(decode)?, prompts: number(prompts)? };
        match rows.decode + rows.prompts {
            0 => Err("a step has rows".into()),
            _ => Ok(Self(rows)),
        }
    }
}

#[derive(Debug, Args)]
pub struct StepsArgs {
    /// The GPU's number.
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Sizes of the model.
    #[arg(long, value_enum, default_value = "llama-3.1-8b")]
    shape: Shape,
    #[arg(long, value_enum, default_value = "none")]
    quantization: Quantization,
    /// Of keys and values.
    #[arg(long, value_enum, default_value = "auto")]
    kv_cache_dtype: KvDtype,
    /// Steps: requests that decode, and rows of prompts.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "DECODE[+PROMPTS]",
        default_value = "1,32,32+224"
    )]
    rows: Vec<Rows>,
    /// Tokens of a request that decodes.
    #[arg(long, default_value_t = 576)]
    context: u32,
    /// Requests take them in turn; 0: the base model alone.
    #[arg(long, default_value_t = 0)]
    adapters: u32,
    /// Of the adapters.
    #[arg(long, default_value_t = 16)]
    rank: u32,
    /// Whole steps alone, without leaving out one kind of kernel after the other.
    #[arg(long)]
    whole: bool,
    /// Folders whose kernels are measured, too, in place of those built in.
    #[arg(long, value_delimiter = ',', value_name = "FOLDER")]
    kernel_sources: Vec<PathBuf>,
    /// Write all times to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: StepsArgs) -> anyhow::Result<()> {
    let gpu = probe(args.device)?;
    println!("{}, {} multiprocessors", gpu.name, gpu.multiprocessors);
    let spec = args.shape.spec();
    let config = StepsConfig {
        cuda: CudaConfig {
            ordinal: args.device,
            precision: args.quantization.into(),
            kv_precision: args.kv_cache_dtype.into(),
            adapter_bytes: Some(12 << 30),
            ..CudaConfig::default()
        },
        model: ModelConfig::plain(spec),
        steps: args.rows.into_iter().map(|Rows(rows)| rows).collect(),
        context: args.context,
        adapters: args.adapters,
        rank: args.rank,
        kernel_sources: args.kernel_sources,
        parts: !args.whole,
    };
    let mut times = Vec::new();
    check::time_steps(&config, &mut |time| {
        print(&time);
        times.push(time);
    })?;
    if let Some(path) = args.json {
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        serde_json::to_writer_pretty(file, &times)?;
    }
    Ok(())
}

fn print(time: &StepTime) {
    let StepRows { decode, prompts } = time.rows;
    let of = time.kernel_sources.as_ref().map_or("".into(), |path| format!(", {}", path.display()));
    println!(
        "{decode}+{prompts} rows{of}: {:.0} us, {} launches",
        time.microseconds, time.launches
    );
    for part in &time.parts {
        let each = part.microseconds / part.launches as f64;
        println!(
            "  {:16} {:8.0} us, {:3} launches, {each:6.1} us each",
            part.part, part.microseconds, part.launches
        );
    }
}
