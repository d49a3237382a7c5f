//! Every kernel against a slow f32 computation on the host, and its time against the floor that the
//! memory sets; then whole random models against the reference. `lorikeet kernels check` runs it.

mod adapter;
mod attention;
mod churn;
mod expand;
mod families;
mod forced;
mod kit;
mod kv;
mod lab;
mod lora;
mod model;
mod oracle;
mod products;
mod rows;
mod sample;
mod shrink;
mod steps;

pub use adapter::{AdapterShape, random_adapter};
#[cfg(test)]
pub(super) use families::distances_from_plain;
pub use lab::Random;
#[cfg(test)]
pub(super) use model::TOLERANCE;
pub use model::random_model;
pub use steps::{StepRows, StepTime, StepsConfig, time_steps};

use super::{CudaConfig, CudaError, Precision};
use crate::backend::BackendError;
use lab::Lab;
use lorikeet_contract::{BaseModelSpec, WeightsDigest};
use serde::Serialize;

/// One case of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub kernel: &'static str,
    pub case: String,
    /// `|out - reference| / |reference|`; infinite when anything is not finite.
    pub error: f64,
    pub tolerance: f64,
    pub time: Option<Time>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Time {
    pub microseconds: f64,
    /// Bytes that must move, at the bandwidth measured for reading.
    pub floor_microseconds: f64,
}

impl Outcome {
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("the reference: {0}")]
    Reference(String),
}

/// Checks each kernel by itself. Outcomes are reported as they come.
pub fn kernels(config: &CudaConfig, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    for spec in [llama_8b(1), smollm2(1)] {
        let lab = Lab::open(config, spec.clone())?;
        rows::check(&lab, report)?;
        products::check(&lab, report)?;
        lora::check(&lab, report)?;
        attention::check(&lab, report)?;
        sample::check(&lab, report)?;
        drop(lab);
        let fp8 = CudaConfig { precision: Precision::Fp8, ..config.clone() };
        let lab = Lab::open(&fp8, spec.clone())?;
        rows::check(&lab, report)?;
        lora::check_briefly(&lab, report)?;
        drop(lab);
        let fp8_kv = CudaConfig { kv_precision: Precision::Fp8, ..config.clone() };
        let lab = Lab::open(&fp8_kv, spec)?;
        attention::check(&lab, report)?;
        lora::check_kv(&lab, report)?;
    }
    Ok(())
}

/// Checks whole forward passes of seeded random models, with adapters of every kind.
pub fn models(config: &CudaConfig, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    for spec in whole_models() {
        model::check(config, spec.clone(), report)?;
        let fp8_kv = CudaConfig { kv_precision: Precision::Fp8, ..config.clone() };
        model::check_base(&fp8_kv, &random_model(spec), "fp8 KV", FP8_KV, report)?;
    }
    Ok(())
}

/// Checks what single families of models have.
pub fn families(config: &CudaConfig, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    whole_models().iter().try_for_each(|spec| families::check(config, spec, report))
}

/// Checks thousands of steps with adapters coming and going, and with the border between them and the
/// blocks moving.
pub fn steps(config: &CudaConfig, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    for spec in whole_models() {
        churn::check(config, spec.clone(), report)?;
        churn::check_border(config, spec, churn::TOLERANCE, report)?;
    }
    let [_, large] = whole_models();
    let fp8_kv = CudaConfig { kv_precision: Precision::Fp8, ..config.clone() };
    churn::check_border(&fp8_kv, large, FP8_KV, report)
}

/// One of many narrow layers, one of few wide ones, both with small vocabularies.
fn whole_models() -> [BaseModelSpec; 2] {
    let small = BaseModelSpec { vocab_size: 2048, ..smollm2(30) };
    let large = BaseModelSpec { vocab_size: 2048, ..llama_8b(2) };
    [small, large]
}

/// Each key and value is rounded to 3 bits behind the leading one, at random: 2.6 % each, in every layer.
const FP8_KV: f64 = 0.1;

pub use kit::check as kit;

/// Llama-3.1-8B's shapes.
pub fn llama_8b(num_layers: u32) -> BaseModelSpec {
    BaseModelSpec {
        id: "llama-3.1-8b".into(),
        weights_digest: WeightsDigest([0; 32]),
        architecture: "llama".into(),
        hidden_size: 4096,
        intermediate_size: 14336,
        num_layers,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        vocab_size: 128_256,
        context_length: 4096,
    }
}

/// SmolLM2-135M's shapes.
pub fn smollm2(num_layers: u32) -> BaseModelSpec {
    BaseModelSpec {
        id: "smollm2-135m".into(),
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        vocab_size: 49_152,
        ..llama_8b(num_layers)
    }
}
