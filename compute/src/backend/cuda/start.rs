//! How long a start takes, part by part.

use serde::Serialize;
use std::time::Instant;

/// Seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StartTimes {
    /// Opening the device, and compiling the kernels or reading them from the cache.
    pub kernels: f64,
    /// Bringing the weights to the device.
    pub weights: f64,
    /// Taking memory for activations, keys, values and adapters.
    pub memory: f64,
    /// Picking the products' algorithms, or reading them from the cache.
    pub products: f64,
}

/// Tells the parts of a start apart.
pub struct Laps(Instant);

impl Laps {
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the last lap.
    pub fn lap(&mut self) -> f64 {
        let (began, now) = (self.0, Instant::now());
        self.0 = now;
        (now - began).as_secs_f64()
    }
}
