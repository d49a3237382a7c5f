//! What the timelines of the requests come to.

use super::client::{Loaded, Timeline};
use lorikeet_compute::backend::cuda::StartTimes;
use serde::Serialize;
use std::ops::Range;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Requests that ended inside the window.
    pub requests: usize,
    /// Concurrency times output tokens over the mean time of a request.
    pub output_tokens_per_second: f64,
    /// Tokens that arrived inside the window, over its length.
    pub counted_tokens_per_second: f64,
    /// Milliseconds to the first token, of the requests that began inside the window.
    pub ttft: Percentiles,
    /// Milliseconds for each further token, averaged over a request.
    pub tpot: Percentiles,
    /// Milliseconds between two tokens.
    pub itl: Percentiles,
    pub start: StartReport,
    /// Most rows of a step.
    pub max_rows: usize,
    /// Processor time of this process inside the window, for each token that arrived in it.
    pub cpu_ms_per_output_token: Option<f64>,
    /// Adapters brought to the device inside the window.
    pub swaps: u64,
    /// Of the requests beside the load whose adapters were loaded for them.
    pub loading: Option<LoadingReport>,
}

/// Seconds from nothing to an engine that answers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StartReport {
    #[serde(flatten)]
    pub parts: StartParts,
    /// Until the engine ran.
    pub running: f64,
    /// Until a request of one token was answered, the engine's first: what is made when it is first wanted
    /// has been made then.
    pub first_token: f64,
    /// Until every adapter was on the device.
    pub adapters: f64,
}

/// Seconds that parts of the start took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct StartParts {
    /// Reading the model's files and taking their digest; None where weights are random.
    pub read: Option<f64>,
    /// None: not a GPU.
    #[serde(flatten)]
    pub device: Option<StartTimes>,
}

/// Milliseconds to the first token, or that a load took by itself.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LoadingReport {
    pub loads: usize,
    /// With an adapter that was not on the device.
    pub cold: Percentiles,
    /// With one that had just been brought there; NaN where no requests asked.
    pub resident: Percentiles,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Percentiles {
    /// NaN of no values.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (values.len() as f64 * share) as usize;
            values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

/// What a report is drawn from.
pub(super) struct Observed<'a> {
    pub timelines: &'a [Timeline],
    pub window: Range<Instant>,
    pub concurrency: usize,
    pub output_tokens: u32,
    pub start: StartReport,
    pub max_rows: usize,
    pub cpu_seconds: Option<f64>,
    pub swaps: u64,
    pub loaded: Option<Loaded>,
}

impl Observed<'_> {
    pub fn report(&self) -> BenchReport {
        let window = &self.window;
        let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
        let (mut ttft, mut tpot, mut itl, mut latency) = (vec![], vec![], vec![], vec![]);
        let mut tokens = 0;
        for timeline in self.timelines {
            let Some((first, last)) = timeline.tokens.first().zip(timeline.tokens.last()) else {
                continue;
            };
            tokens += timeline.tokens.iter().filter(|t| window.contains(*t)).count();
            if window.contains(&timeline.submitted) {
                ttft.push(milliseconds(*first - timeline.submitted));
            }
            let within = timeline.tokens.windows(2).filter(|pair| window.contains(&pair[1]));
            itl.extend(within.map(|pair| milliseconds(pair[1] - pair[0])));
            if window.contains(last) {
                latency.push(milliseconds(*last - timeline.submitted));
                let further = (timeline.tokens.len() - 1).max(1) as f64;
                tpot.push(milliseconds(*last - *first) / further);
            }
        }
        let mean = latency.iter().sum::<f64>() / latency.len() as f64;
        let together = self.concurrency as f64 * f64::from(self.output_tokens);
        BenchReport {
            requests: latency.len(),
            output_tokens_per_second: together / mean * 1e3,
            counted_tokens_per_second: tokens as f64 / (window.end - window.start).as_secs_f64(),
            ttft: Percentiles::of(ttft),
            tpot: Percentiles::of(tpot),
            itl: Percentiles::of(itl),
            start: self.start,
            max_rows: self.max_rows,
            cpu_ms_per_output_token: self.cpu_seconds.map(|s| s * 1e3 / tokens as f64),
            swaps: self.swaps,
            loading: self.loaded.as_ref().map(|loaded| LoadingReport {
                loads: loaded.cold.len(),
                cold: Percentiles::of(loaded.cold.clone()),
                resident: Percentiles::of(loaded.resident.clone()),
            }),
        }
    }
}
