//! How far the loading of a model has come.

use std::sync::atomic::{AtomicU64, Ordering};

/// Weights read, of all. Written by the threads that read them, looked at by anybody.
#[derive(Debug, Default)]
pub struct LoadProgress {
    read: AtomicU64,
    /// Zero until they have been counted.
    total: AtomicU64,
}

impl LoadProgress {
    pub(super) fn expect(&self, weights: u64) {
        self.total.store(weights, Ordering::Relaxed);
    }

    pub(super) fn add(&self, weights: u64) {
        self.read.fetch_add(weights, Ordering::Relaxed);
    }

    /// Between 0 and 1.
    pub fn part(&self) -> f64 {
        let total = self.total.load(Ordering::Relaxed).max(1);
        (self.read.load(Ordering::Relaxed) as f64 / total as f64).min(1.0)
    }
}
