//! Where each adapter's bytes are, and what to load, move or drop next. A function of state and
//! `now`.

mod report;

use std::time::Duration;

pub use report::{AdapterReport, ResidencyReport, ResidencyState, TierUse};

/// Budgets and pace. The device's budget is the backend's
/// ([`Capacity::adapter_bytes`](crate::backend::Capacity)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResidencyConfig {
    pub host_bytes: u64,
    pub disk_bytes: u64,
    /// How long an adapter that is in use stays on the device while others wait for its place.
    pub quantum: Duration,
    /// Downloads, and reads from disk, under way at once.
    pub max_fetches: usize,
    pub max_reads: usize,
    /// A failed load is tried again after this, doubled with each failure up to `retry_max`.
    pub retry_min: Duration,
    pub retry_max: Duration,
}

impl Default for ResidencyConfig {
    fn default() -> Self {
        Self {
            host_bytes: 1 << 30,
            disk_bytes: 16 << 30,
            quantum: Duration::from_millis(500),
            max_fetches: 4,
            max_reads: 2,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
        }
    }
}
