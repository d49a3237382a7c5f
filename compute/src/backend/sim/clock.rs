//! The simulated device's time: that of the world, or one that moves only when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Clones of a simulated clock show the same time.
#[derive(Debug, Clone)]
pub struct SimClock {
    start: Instant,
    /// Nanoseconds since `start`; None: the world's time.
    elapsed: Option<Arc<AtomicU64>>,
}

impl SimClock {
    /// Waiting takes as long as it says.
    pub fn real() -> Self {
        Self { start: Instant::now(), elapsed: None }
    }

    /// Waiting takes no time: the clock jumps.
    pub fn simulated() -> Self {
        Self { start: Instant::now(), elapsed: Some(Arc::default()) }
    }

    pub fn now(&self) -> Instant {
        match &self.elapsed {
            None => Instant::now(),
            Some(elapsed) => self.start + Duration::from_nanos(elapsed.load(Ordering::Relaxed)),
        }
    }

    pub fn wait_until(&self, time: Instant) {
        match &self.elapsed {
            None => std::thread::sleep(time.saturating_duration_since(Instant::now())),
            Some(elapsed) => {
                let since = time.saturating_duration_since(self.start).as_nanos();
                let nanos = u64::try_from(since).unwrap_or(u64::MAX);
                elapsed.fetch_max(nanos, Ordering::Relaxed);
            }
        }
    }
}
