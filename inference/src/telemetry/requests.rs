//! What requests are counted by, as their customers feel them: times begin when a request has arrived.

use super::top::Top;
use lorikeet_contract::{AdapterVersionId, TenantId};
use lorikeet_metrics::{Counter, CounterBy, Histogram};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const SECONDS: [f64; 16] =
    [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
const TOKEN_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0];

/// Tenants, and adapters, with series of their own.
const LISTED: usize = 50;

pub struct RequestMetrics {
    /// By method, route and status.
    pub http: CounterBy<(&'static str, String, u16)>,
    pub outcomes: CounterBy<&'static str>,
    /// Clients cut off because they did not take their answers.
    pub slow_readers: Arc<Counter>,
    pub duration: Histogram,
    pub queue: Histogram,
    pub adapter_load: Histogram,
    pub time_to_first_token: Histogram,
    pub inter_token: Histogram,
    pub time_per_output_token: Histogram,
    pub prompt_tokens: Counter,
    pub completion_tokens: Counter,
    /// Tokens of prompts looked up in the prefix cache, and found there.
    pub prefix_query: Counter,
    pub prefix_hit: Counter,
    pub tenants: Top<TenantId, Uses>,
    pub adapters: Top<(TenantId, AdapterVersionId), Uses>,
    in_flight: InFlight,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            http: CounterBy::default(),
            outcomes: CounterBy::default(),
            slow_readers: Arc::default(),
            duration: Histogram::of_seconds(&SECONDS),
            queue: Histogram::of_seconds(&SECONDS),
            adapter_load: Histogram::of_seconds(&SECONDS),
            time_to_first_token: Histogram::of_seconds(&SECONDS),
            inter_token: Histogram::of_seconds(&TOKEN_SECONDS),
            time_per_output_token: Histogram::of_seconds(&TOKEN_SECONDS),
            prompt_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            prefix_query: Counter::default(),
            prefix_hit: Counter::default(),
            tenants: Top::new(LISTED),
            adapters: Top::new(LISTED),
            in_flight: InFlight::default(),
        }
    }
}

impl RequestMetrics {
    pub(super) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }
}

/// What one tenant, or one adapter, has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Uses {
    /// Generations that ended.
    pub requests: u64,
    /// Requests that did not become any. Of a tenant only.
    pub refused: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub queue: Total,
    pub time_to_first_token: Total,
}

/// Observations without their distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Total {
    pub count: u64,
    pub sum: Duration,
}

impl Total {
    pub fn observe(&mut self, duration: Duration) {
        self.count += 1;
        self.sum += duration;
    }
}

/// Requests that the engine has, by the adapter's name. Those without any are not there.
#[derive(Debug, Default)]
pub struct InFlight(Mutex<BTreeMap<String, Stages>>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    pub waiting: u32,
    pub running: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Waiting,
    Running,
}

impl InFlight {
    pub fn enter(&self, adapter: &str, stage: Stage) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(adapter) {
            Some(stages) => *stages.of(stage) += 1,
            None => *all.entry(adapter.to_owned()).or_default().of(stage) += 1,
        }
    }

    pub fn leave(&self, adapter: &str, stage: Stage) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stages) = all.get_mut(adapter) else { return };
        *stages.of(stage) -= 1;
        if *stages == Stages::default() {
            all.remove(adapter);
        }
    }

    pub fn snapshot(&self) -> BTreeMap<String, Stages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Stages {
    fn of(&mut self, stage: Stage) -> &mut u32 {
        match stage {
            Stage::Waiting => &mut self.waiting,
            Stage::Running => &mut self.running,
        }
    }
}
