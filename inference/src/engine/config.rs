//! What the engine is started with.

use crate::adapters::ResidencyConfig;
use crate::scheduler::SchedulerConfig;
use lorikeet_contract::BaseModelSpec;

#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub scheduler: SchedulerConfig,
    pub residency: ResidencyConfig,
    /// Requests that the engine holds at once, waiting or running. One more is refused with
    /// [`SubmitError::QueueFull`](super::SubmitError).
    pub max_requests: usize,
    /// Adapters are checked against it; its context length bounds every sequence.
    pub base: BaseModelSpec,
    /// The model's own end tokens.
    pub eos_tokens: Vec<u32>,
}
