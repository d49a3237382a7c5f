//! What the engine tells about itself.

use crate::adapters::{AdapterKey, ResidencyReport};
use lorikeet_compute::backend::Capacity;
use std::sync::Arc;

/// Where the engine is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EngineState {
    /// The backend is being built; requests queue.
    #[default]
    Starting,
    Running,
    /// Accepts no more, finishes what it has.
    Draining,
    /// Drained, and waiting to be shut down.
    Drained,
    /// The thread has ended, for this reason. Every request has been told.
    Stopped(String),
}

impl EngineState {
    pub fn accepts(&self) -> bool {
        matches!(self, EngineState::Starting | EngineState::Running)
    }
}

/// A snapshot after a step.
#[derive(Debug, Clone, Default)]
pub struct EngineStats {
    pub state: EngineState,
    /// Sequences that hold KV blocks.
    pub running: usize,
    /// Sequences that wait for room or for their adapter.
    pub waiting: usize,
    pub kv: KvUse,
    /// The backend's; nothing while it is being built.
    pub capacity: Capacity,
    /// Adapters that left the device while they were in use, since the start.
    pub rotations: u64,
    pub last_step: StepReport,
    pub residency: Arc<ResidencyReport>,
}

/// KV blocks. `used + cached + free == total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvUse {
    pub total: u32,
    /// Held by a sequence.
    pub used: u32,
    /// Held by nobody, kept for their prefix.
    pub cached: u32,
}

impl KvUse {
    /// Part held by sequences, 0 to 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.used) / f64::from(self.total.max(1))
    }
}

/// What one step did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepReport {
    /// Counts submitted steps from 1.
    pub step: u64,
    pub sequences: u32,
    /// Token positions of prompts (or of recomputed sequences), and of one new token each.
    pub prefill_rows: u32,
    pub decode_rows: u32,
    /// Sequences of the base model alone.
    pub base_sequences: u32,
    /// The distinct adapters of the pass.
    pub adapters: Vec<AdapterKey>,
    /// Sequences that lost their blocks to make room.
    pub preempted: u32,
}

impl StepReport {
    pub fn rows(&self) -> u32 {
        self.prefill_rows + self.decode_rows
    }
}
