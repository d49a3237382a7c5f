//! `lorikeet bench engine`: the engine's speed in this process, without HTTP and tokenizer.

use super::machine::{Card, Setting};
use super::progress::Bar;
use super::table::{print, print_head};
use anyhow::bail;
use clap::ValueEnum;
use lorikeet_compute::backend::cpu::CpuConfig;
use lorikeet_compute::backend::cuda::{CudaConfig, Precision, check};
use lorikeet_compute::backend::sim::SimConfig;
use lorikeet_compute::model::load_config;
use lorikeet_contract::{BaseModelSpec, Linear};
use lorikeet_inference::bench::{
    self, BenchConfig, BenchDevice, BenchReport, BenchWeights, Loading, LoadingBy, Phase,
};
use lorikeet_inference::scheduler::SchedulerConfig;
use serde::Serialize;
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
    /// No model is computed: tokens are made up, at a small GPU's pace
    Sim,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Shape {
    #[value(name = "llama-3.1-8b")]
    Llama8b,
    #[value(name = "smollm2")]
    SmolLm2,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LoadFormat {
    /// Seeded random weights of a --shape
    Dummy,
    /// What --model names, read as a node reads it
    Safetensors,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Quantization {
    /// bf16 weights
    None,
    /// e4m3 weights and inputs of the layers' products; on the GPU alone
    Fp8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KvDtype {
    /// The weights' own: bf16
    Auto,
    /// e4m3; on the GPU alone
    Fp8,
}

impl From<Quantization> for Precision {
    fn from(quantization: Quantization) -> Self {
        match quantization {
            Quantization::None => Self::Bf16,
            Quantization::Fp8 => Self::Fp8,
        }
    }
}

impl From<KvDtype> for Precision {
    fn from(dtype: KvDtype) -> Self {
        match dtype {
            KvDtype::Auto => Self::Bf16,
            KvDtype::Fp8 => Self::Fp8,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LoadingByName {
    /// Two requests for one token each, the first of which finds the adapter away
    Request,
    /// A call that loads the adapter ahead of requests
    WarmUp,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Targets {
    All,
    Qkvo,
}

/// None: what the device measures to be best.
#[derive(Debug, Clone, Copy)]
struct MostRows(Option<usize>);

impl FromStr for MostRows {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            _ => match text.parse() {
                Ok(rows) if rows > 0 => Ok(Self(Some(rows))),
                _ => Err("a positive number or auto is wanted".into()),
            },
        }
    }
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    lorikeet bench engine --device cpu --shape smollm2 --concurrency 1,4,8,16 \\\n    \
    --prompt-tokens 64 --output-tokens 64 --adapters 8\n  \
    lorikeet bench engine --device sim --shape smollm2 --adapters 16 --adapter-device-slots 8\n  \
    lorikeet bench model ./model --shape smollm2\n  \
    lorikeet bench engine --device cpu --load-format safetensors --model ./model")]
pub struct Args {
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    setup: Setup,
}

/// What is asked of the engine.
#[derive(clap::Args)]
struct Load {
    /// Requests under way at any time; several, one measurement each
    #[arg(long, value_delimiter = ',', default_value = "32")]
    concurrency: Vec<usize>,
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    #[arg(long, default_value_t = 128)]
    output_tokens: u32,
    /// Each request takes the next of these; 0: the base model alone
    #[arg(long, default_value_t = 0)]
    adapters: u32,
    /// As many adapters fit the device, whatever their size [default: as many as --adapter-gib holds]
    #[arg(long, value_name = "N")]
    adapter_device_slots: Option<u32>,
}

/// What runs, and for how long.
#[derive(clap::Args, Debug)]
pub struct Setup {
    #[arg(long, value_enum)]
    device: DeviceName,
    /// Sizes of a model whose weights are made up
    #[arg(long, value_enum, required_unless_present = "model", conflicts_with = "model")]
    shape: Option<Shape>,
    #[arg(long, value_enum, default_value = "dummy")]
    load_format: LoadFormat,
    /// A model's directory, for --load-format safetensors; `bench model` writes one
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "none")]
    quantization: Quantization,
    /// Of keys and values
    #[arg(long, value_enum, default_value = "auto")]
    kv_cache_dtype: KvDtype,
    /// Of the adapters
    #[arg(long, default_value_t = 16)]
    rank: u32,
    /// Linears that the adapters change
    #[arg(long, value_enum, default_value = "all")]
    targets: Targets,
    /// Most rows of a step, prefill and decode together; auto: a GPU measures which number is best
    #[arg(long, default_value = "512", value_name = "ROWS|auto")]
    max_num_batched_tokens: MostRows,
    #[arg(long, default_value_t = 256)]
    max_num_seqs: usize,
    /// Tokens that the KV cache always has room for
    #[arg(long)]
    kv_tokens: Option<u64>,
    /// Other adapters that are brought to the device beside the load; where not all fit, each is
    /// loaded anew in its turn. With a concurrency of 0, the idle engine's times to the first token
    #[arg(long, default_value_t = 0, value_name = "N")]
    loading: u32,
    /// Their rank
    #[arg(long, default_value_t = 64)]
    loading_rank: u32,
    /// Milliseconds between two of them
    #[arg(long, default_value_t = 100)]
    loading_pause: u64,
    /// What asks for them
    #[arg(long, value_enum, default_value = "request")]
    loading_by: LoadingByName,
    /// Host memory for adapters, GiB
    #[arg(long, default_value_t = 64)]
    adapter_host_gib: u64,
    /// Device memory that adapters always have, GiB; a GPU lends them more, unless --kv-tokens is given, too
    #[arg(long, default_value_t = 12)]
    adapter_gib: u64,
    /// Seconds before measuring
    #[arg(long, default_value_t = 8)]
    warm_up: u64,
    /// Seconds of measuring
    #[arg(long, default_value_t = 16)]
    window: u64,
    /// The same seed draws the same weights and prompts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder whose GPU kernels take the place of those built in
    #[arg(long, value_name = "FOLDER")]
    kernel_sources: Option<PathBuf>,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One measurement's load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Case {
    pub concurrency: usize,
    pub prompt_tokens: usize,
    pub output_tokens: u32,
    pub adapters: u32,
    /// None: as many as their memory holds.
    pub adapter_device_slots: Option<u32>,
}

#[derive(Serialize)]
struct Document {
    setting: Setting,
    /// Of the engine, defaults included.
    options: String,
    results: Vec<Result>,
}

#[derive(Serialize)]
struct Result {
    #[serde(flatten)]
    case: Case,
    report: BenchReport,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { load, setup } = args;
    let setting = setup.setting()?;
    print_head();
    let mut results = Vec::new();
    for &concurrency in &load.concurrency {
        let case = Case {
            concurrency,
            prompt_tokens: load.prompt_tokens,
            output_tokens: load.output_tokens,
            adapters: load.adapters,
            adapter_device_slots: load.adapter_device_slots,
        };
        let report = setup.measure(case).await?;
        print(&concurrency.to_string(), &report);
        results.push(Result { case, report });
    }
    let options = format!("{setup:?}");
    super::save(setup.json(), &Document { setting, options, results })
}

impl Shape {
    pub fn spec(self) -> BaseModelSpec {
        match self {
            Shape::Llama8b => check::llama_8b(32),
            Shape::SmolLm2 => check::smollm2(30),
        }
    }
}

impl Setup {
    pub fn setting(&self) -> anyhow::Result<Setting> {
        let card = match self.device {
            DeviceName::Cuda => Some(Card::probe(0)?),
            DeviceName::Cpu | DeviceName::Sim => None,
        };
        Ok(Setting::new(card))
    }

    pub fn json(&self) -> Option<&Path> {
        self.json.as_deref()
    }

    pub async fn measure(&self, case: Case) -> anyhow::Result<BenchReport> {
        let directory = std::env::temp_dir().join(format!("lorikeet-bench-{}", std::process::id()));
        let (weights, spec) = self.weights()?;
        let config = BenchConfig {
            device: self.device(case),
            weights,
            spec,
            scheduler: SchedulerConfig {
                max_num_seqs: self.max_num_seqs,
                // The device's own measure then bounds it.
                max_num_batched_tokens: self.max_num_batched_tokens.0.unwrap_or(usize::MAX),
                ..SchedulerConfig::default()
            },
            concurrency: case.concurrency,
            prompt_tokens: case.prompt_tokens,
            output_tokens: case.output_tokens,
            adapters: case.adapters,
            rank: self.rank,
            linears: match self.targets {
                Targets::All => Linear::ALL.to_vec(),
                Targets::Qkvo => {
                    vec![Linear::QProj, Linear::KProj, Linear::VProj, Linear::OProj]
                }
            },
            loading: (self.loading > 0).then(|| Loading {
                adapters: self.loading,
                rank: self.loading_rank,
                pause: Duration::from_millis(self.loading_pause),
                by: match self.loading_by {
                    LoadingByName::Request => LoadingBy::Request,
                    LoadingByName::WarmUp => LoadingBy::WarmUp,
                },
            }),
            host_bytes: self.adapter_host_gib << 30,
            seed: self.seed,
            warm_up: Duration::from_secs(self.warm_up),
            window: Duration::from_secs(self.window),
            directory: directory.clone(),
        };
        let length = config.warm_up + config.window;
        let bar = RefCell::new(None);
        let report = bench::run(config, |phase| {
            // The bar before is taken away first.
            bar.replace(None);
            bar.replace(Some(match phase {
                Phase::Starting => Bar::unmeasured("starting"),
                Phase::LoadingAdapters => Bar::unmeasured("loading"),
                Phase::Measuring => Bar::over_time("measuring", length),
            }));
        })
        .await;
        // Best effort: the operating system empties its folder for temporary files anyway.
        let _ = fs::remove_dir_all(directory);
        report
    }

    fn weights(&self) -> anyhow::Result<(BenchWeights, BaseModelSpec)> {
        match (self.load_format, self.shape, &self.model) {
            (LoadFormat::Dummy, Some(shape), _) => Ok((BenchWeights::Random, shape.spec())),
            (LoadFormat::Safetensors, _, Some(path)) => {
                let spec = load_config(path, None)?.spec;
                Ok((BenchWeights::Files(path.clone()), spec))
            }
            (LoadFormat::Dummy, None, _) => {
                bail!("a --model is read with --load-format safetensors alone")
            }
            (LoadFormat::Safetensors, _, None) => {
                bail!("--load-format safetensors needs a --model, not a --shape")
            }
        }
    }

    fn device(&self, case: Case) -> BenchDevice {
        let adapter_bytes = self.adapter_gib << 30;
        let slots = case.adapter_device_slots;
        match self.device {
            DeviceName::Cuda => {
                let default = CudaConfig::default();
                BenchDevice::Cuda(CudaConfig {
                    kv_tokens: self.kv_tokens,
                    adapter_bytes: Some(adapter_bytes),
                    max_slots: slots.unwrap_or(default.max_slots),
                    max_rows: self.max_num_batched_tokens.0.map(|rows| rows as u32),
                    precision: self.quantization.into(),
                    kv_precision: self.kv_cache_dtype.into(),
                    kernel_sources: self.kernel_sources.clone(),
                    ..default
                })
            }
            DeviceName::Cpu => {
                let default = CpuConfig::default();
                BenchDevice::Cpu(CpuConfig {
                    kv_tokens: self.kv_tokens.map_or(default.kv_tokens, |n| n as usize),
                    adapter_bytes,
                    max_slots: slots.unwrap_or(default.max_slots),
                    max_rows: self.max_num_batched_tokens.0.unwrap_or(default.max_rows),
                    ..default
                })
            }
            DeviceName::Sim => {
                let mut sim = SimConfig::default();
                sim.capacity.adapter_bytes = adapter_bytes;
                sim.capacity.max_slots = slots.unwrap_or(sim.capacity.max_slots);
                BenchDevice::Sim(sim)
            }
        }
    }
}
