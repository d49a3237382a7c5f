//! What the engine's thread counts. Each is an atomic addition; nothing is held up, and nothing is
//! allocated in the steady state.

use crate::adapters::AdapterKey;
use crate::adapters::residency::{FetchFailure, ReadFailure, UploadFailure};
use crate::engine::StepReport;
use lorikeet_compute::backend::{AdapterSlot, HostAdapter};
use lorikeet_metrics::{Counter, Histogram};
use std::time::Instant;

const STEP_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0];
const MOVE_SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
const SIZES: [u64; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Where adapters are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    Disk,
    Host,
    Device,
}

impl Tier {
    pub const ALL: [Self; 3] = [Self::Disk, Self::Host, Self::Device];

    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Host => "host",
            Self::Device => "device",
        }
    }
}

#[derive(Debug)]
pub struct EngineMetrics {
    /// From a step's submission to its output.
    pub step_seconds: Histogram,
    pub step_sequences: Histogram,
    pub step_rows: Histogram,
    pub prefill_rows: Counter,
    pub decode_rows: Counter,
    pub preemptions: Counter,
    /// Blocks that changed place to make room for adapters.
    pub blocks_moved: Counter,
    /// Into each tier.
    loads: [LoadMetrics; 3],
    pub device_evictions: Counter,
}

#[derive(Debug)]
pub struct LoadMetrics {
    pub succeeded: Counter,
    pub failed: Counter,
    /// Bytes and times are of those that succeeded.
    pub bytes: Counter,
    pub seconds: Histogram,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        Self {
            step_seconds: Histogram::of_seconds(&STEP_SECONDS),
            step_sequences: Histogram::of_counts(&SIZES[..11]),
            step_rows: Histogram::of_counts(&SIZES),
            prefill_rows: Counter::default(),
            decode_rows: Counter::default(),
            preemptions: Counter::default(),
            blocks_moved: Counter::default(),
            loads: Tier::ALL.map(|_| LoadMetrics {
                succeeded: Counter::default(),
                failed: Counter::default(),
                bytes: Counter::default(),
                seconds: Histogram::of_seconds(&MOVE_SECONDS),
            }),
            device_evictions: Counter::default(),
        }
    }
}

impl EngineMetrics {
    pub fn into_tier(&self, tier: Tier) -> &LoadMetrics {
        &self.loads[tier as usize]
    }

    pub fn step_submitted(&self, step: &StepReport) {
        self.step_sequences.observe(step.sequences.into());
        self.step_rows.observe(step.rows().into());
        self.prefill_rows.add(step.prefill_rows.into());
        self.decode_rows.add(step.decode_rows.into());
    }
}

/// An adapter's bytes on their way into a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    Fetch(AdapterKey),
    Read(AdapterKey),
    Upload(AdapterSlot),
}

impl Move {
    fn into_tier(self) -> Tier {
        match self {
            Self::Fetch(_) => Tier::Disk,
            Self::Read(_) => Tier::Host,
            Self::Upload(_) => Tier::Device,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveEnd {
    Done,
    Failed,
    /// Nobody wanted it any more, or there was no room yet: neither a success nor a failure.
    GivenUp,
}

impl From<&Result<(), FetchFailure>> for MoveEnd {
    fn from(result: &Result<(), FetchFailure>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(FetchFailure::Cancelled) => Self::GivenUp,
            Err(FetchFailure::Failed(_)) => Self::Failed,
        }
    }
}

impl From<&Result<HostAdapter, ReadFailure>> for MoveEnd {
    fn from(result: &Result<HostAdapter, ReadFailure>) -> Self {
        if result.is_ok() { Self::Done } else { Self::Failed }
    }
}

impl From<&Result<(), UploadFailure>> for MoveEnd {
    fn from(result: &Result<(), UploadFailure>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(UploadFailure::NoRoom) => Self::GivenUp,
            Err(UploadFailure::Failed(_)) => Self::Failed,
        }
    }
}

/// Times the moves under way, of which there are a handful: residency bounds them.
#[derive(Debug, Default)]
pub struct Moves(Vec<UnderWay>);

#[derive(Debug)]
struct UnderWay {
    what: Move,
    bytes: u64,
    begun: Instant,
}

impl Moves {
    pub fn begin(&mut self, what: Move, bytes: u64, now: Instant) {
        self.0.push(UnderWay { what, bytes, begun: now });
    }

    pub fn end(&mut self, what: Move, end: MoveEnd, metrics: &EngineMetrics, now: Instant) {
        let Some(at) = self.0.iter().position(|moving| moving.what == what) else { return };
        let UnderWay { bytes, begun, .. } = self.0.swap_remove(at);
        let into = metrics.into_tier(what.into_tier());
        match end {
            MoveEnd::Done => {
                into.seconds.observe_duration(now.saturating_duration_since(begun));
                into.succeeded.increment();
                into.bytes.add(bytes);
            }
            MoveEnd::Failed => into.failed.increment(),
            MoveEnd::GivenUp => {}
        }
    }
}
