//! `lorikeet kernels check`: the GPU's kernels against slow computations on the host.

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use lorikeet_compute::backend::cuda::check::{self, Outcome};
use lorikeet_compute::backend::cuda::{CudaConfig, probe};
use std::fs::File;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The GPU's number.
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Nothing but these parts.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// A real model's file, to be compared with the references of a kit; nothing else runs.
    #[arg(long, requires = "kit")]
    model: Option<PathBuf>,
    /// Folder with `adapters/` and `reference/`.
    #[arg(long, requires = "model")]
    kit: Option<PathBuf>,
    /// A folder whose kernels take the place of those built in
    #[arg(long)]
    kernel_sources: Option<PathBuf>,
    /// Write all outcomes to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Each kernel by itself
    Kernels,
    /// Whole random models, with adapters of every kind
    Models,
    /// What the models of single families have
    Families,
    /// Thousands of steps with adapters coming and going
    Steps,
}

pub fn run(args: CheckArgs) -> anyhow::Result<()> {
    let gpu = probe(args.device)?;
    println!("{}, {} multiprocessors", gpu.name, gpu.multiprocessors);
    let config = CudaConfig {
        ordinal: args.device,
        kernel_sources: args.kernel_sources,
        ..CudaConfig::default()
    };
    let mut outcomes = Vec::new();
    let mut report = |outcome: Outcome| {
        print(&outcome);
        outcomes.push(outcome);
    };
    if let (Some(model), Some(kit)) = (&args.model, &args.kit) {
        check::kit(&config, model, kit, &mut report)?;
    } else {
        for part in Part::value_variants() {
            if !args.only.is_empty() && !args.only.contains(part) {
                continue;
            }
            match part {
                Part::Kernels => check::kernels(&config, &mut report)?,
                Part::Models => check::models(&config, &mut report)?,
                Part::Families => check::families(&config, &mut report)?,
                Part::Steps => check::steps(&config, &mut report)?,
            }
        }
    }
    if let Some(path) = args.json {
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        serde_json::to_writer_pretty(file, &outcomes)?;
    }
    let failed = outcomes.iter().filter(|o| !o.passes()).count();
    println!("{} checks, {failed} failed", outcomes.len());
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}

fn print(outcome: &Outcome) {
    let verdict = if outcome.passes() { "ok  " } else { "FAIL" };
    let (kernel, case, error) = (outcome.kernel, &outcome.case, outcome.error);
    print!("{verdict} {kernel:11} {case:52} error {error:.1e} of {:.1e}", outcome.tolerance);
    if let Some(time) = outcome.time {
        let (took, floor) = (time.microseconds, time.floor_microseconds);
        print!("  {took:8.1} us, floor {floor:7.1} us, x {:.1}", took / floor);
    }
    println!();
}
