use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Observations counted by size. Its sum is whole numbers of its own unit, so that it is exact.
#[derive(Debug)]
pub struct Histogram {
    /// Largest value of each bucket, ascending. One more bucket takes what is larger.
    bounds: Box<[u64]>,
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// Of the units observed in, in one of those exposed.
    scale: f64,
}

/// A histogram at one moment.
pub(crate) struct Snapshot {
    /// Upper bound and observations up to it, without the last bucket.
    pub buckets: Vec<(f64, u64)>,
    pub count: u64,
    pub sum: f64,
}

impl Histogram {
    /// Of times: observed in nanoseconds, exposed in seconds, as Prometheus asks for.
    pub fn of_seconds(bounds: &[f64]) -> Self {
        const NANOSECONDS: f64 = 1e9;
        let nanoseconds = bounds.iter().map(|bound| (bound * NANOSECONDS).round() as u64);
        Self::new(nanoseconds.collect(), NANOSECONDS)
    }

    /// Of counts and sizes.
    pub fn of_counts(bounds: &[u64]) -> Self {
        Self::new(bounds.into(), 1.0)
    }

    fn new(bounds: Box<[u64]>, scale: f64) -> Self {
        debug_assert!(bounds.is_sorted_by(|a, b| a < b));
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0), scale }
    }

    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The count is that of the buckets read, so that they always agree.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut count = 0;
        let mut cumulated = Vec::with_capacity(self.bounds.len());
        for (bound, of_bucket) in self.bounds.iter().zip(&self.counts) {
            count += of_bucket.load(Ordering::Relaxed);
            cumulated.push((*bound as f64 / self.scale, count));
        }
        count += self.counts[self.bounds.len()].load(Ordering::Relaxed);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / self.scale;
        Snapshot { buckets: cumulated, count, sum }
    }
}
