//! Which sequences run in the next step. A function of state and `now`.

/// Limits of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Sequences of one step.
    pub max_num_seqs: usize,
    /// Rows (token positions) of one step, prefill and decode together.
    pub max_num_batched_tokens: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { max_num_seqs: 64, max_num_batched_tokens: 512 }
    }
}
