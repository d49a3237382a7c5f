//! What executes the model, and the sizes it is given.

use super::vars::{ConfigError, Vars};
use crate::adapters::ResidencyConfig;
use crate::scheduler::SchedulerConfig;
use lorikeet_compute::backend::cpu::CpuConfig;
use lorikeet_compute::backend::cuda::{CudaConfig, Precision};
use lorikeet_compute::backend::sim::SimConfig;

/// Pinning takes half a second for each GiB: what is beyond follows when it is needed.
const MOST_PINNED_AT_START: u64 = 16 << 30;

/// What executes the model.
#[derive(Clone)]
pub enum Device {
    /// The GPU if there is one that can be used, else the CPU.
    Auto {
        cpu: CpuConfig,
        cuda: CudaConfig,
    },
    Cpu(CpuConfig),
    Cuda(CudaConfig),
    /// No model is computed: tokens are made up, at a GPU's pace.
    Sim(SimConfig),
}

pub(super) fn device(vars: Vars<'_>, scheduler: SchedulerConfig) -> Result<Device, ConfigError> {
    let name = "LORIKEET_DEVICE";
    let kv_tokens = vars.positive("LORIKEET_KV_TOKENS")?;
    let adapter_bytes = vars.positive("LORIKEET_ADAPTER_DEVICE_BYTES")?;
    let is_auto = scheduler.max_num_batched_tokens == usize::MAX;
    let rows = match is_auto {
        true => SchedulerConfig::default().max_num_batched_tokens,
        false => scheduler.max_num_batched_tokens,
    };
    let default = CpuConfig::default();
    let cpu = CpuConfig {
        kv_tokens: kv_tokens.map_or(default.kv_tokens, |n| n as usize),
        adapter_bytes: adapter_bytes.unwrap_or(default.adapter_bytes),
        max_rows: rows,
        ..default
    };
    let host_bytes = vars
        .positive("LORIKEET_ADAPTER_HOST_BYTES")?
        .unwrap_or(ResidencyConfig::default().host_bytes);
    let weights = precision(vars, "LORIKEET_QUANTIZATION", "none")?;
    let kv = precision(vars, "LORIKEET_KV_CACHE_DTYPE", "auto")?;
    let default = CudaConfig::default();
    let cuda = |ordinal| CudaConfig {
        ordinal,
        kv_tokens,
        adapter_bytes,
        max_rows: (!is_auto).then(|| u32::try_from(rows).unwrap_or(u32::MAX)),
        precision: weights,
        kv_precision: kv,
        pinned_bytes: host_bytes.min(MOST_PINNED_AT_START),
        ..default.clone()
    };
    let wanted = vars.or::<String>(name, "auto")?;
    match wanted.as_str() {
        "auto" => Ok(Device::Auto { cpu, cuda: cuda(0) }),
        "cpu" => Ok(Device::Cpu(cpu)),
        "cuda" => Ok(Device::Cuda(cuda(0))),
        "sim" => {
            let mut sim = SimConfig::default();
            let block_size = u64::from(sim.capacity.block_size);
            let blocks = kv_tokens.map(|n| u32::try_from(n.div_ceil(block_size)));
            if let Some(blocks) = blocks {
                sim.capacity.num_blocks = blocks.unwrap_or(u32::MAX);
            }
            sim.capacity.adapter_bytes = adapter_bytes.unwrap_or(sim.capacity.adapter_bytes);
            // For tests of what follows: nothing in a request can bring it about.
            sim.faults.panic_at_step = vars.positive("LORIKEET_SIM_PANIC_AT_STEP")?;
            Ok(Device::Sim(sim))
        }
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(ordinal) => Ok(Device::Cuda(cuda(ordinal))),
            None => Err(ConfigError::Invalid {
                name,
                value: other.into(),
                reason: "auto, cpu, cuda, cuda:N or sim is wanted".into(),
            }),
        },
    }
}

/// fp8, or what `plain` calls bf16.
fn precision(
    vars: Vars<'_>,
    name: &'static str,
    plain: &'static str,
) -> Result<Precision, ConfigError> {
    match vars.or::<String>(name, plain)? {
        value if value == plain => Ok(Precision::Bf16),
        value if value == "fp8" => Ok(Precision::Fp8),
        value => {
            Err(ConfigError::Invalid { name, value, reason: format!("{plain} or fp8 is wanted") })
        }
    }
}
