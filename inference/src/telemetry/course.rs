//! One generation's course: waiting, prefill, decode, and how it ended.

use super::requests::{Stage, Uses};
use super::{Observation, Served, Telemetry};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a generation ended: a finish reason, or an error's code.
pub type Outcome = &'static str;

const CANCELLED: Outcome = "cancelled";

/// Times of a generation that has ended, as far as it came.
#[derive(Debug, Clone)]
pub struct Ended {
    pub served: Served,
    pub outcome: Outcome,
    pub submitted: Instant,
    /// From the submission to the first rows, and of that until the adapter was on the device.
    pub queue: Option<(Duration, Duration)>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub completion_tokens: u32,
}

/// Counts as it goes; dropped before its end, it was cancelled.
pub struct Course {
    telemetry: Arc<Telemetry>,
    observation: Arc<Observation>,
    /// None when it has ended.
    stage: Option<Stage>,
    times: Ended,
}

impl Course {
    /// To be called when the engine has accepted the request.
    pub fn begin(observation: &Arc<Observation>, served: Served, prompt_tokens: u32) -> Self {
        let telemetry = observation.telemetry().clone();
        let stage = Stage::Waiting;
        if let Some(adapter) = served.adapter_name() {
            telemetry.requests.in_flight().enter(adapter, stage);
        }
        let times = Ended {
            served,
            outcome: CANCELLED,
            submitted: Instant::now(),
            queue: None,
            first_token: None,
            last_token: None,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: 0,
        };
        Self { telemetry, observation: observation.clone(), stage: Some(stage), times }
    }

    /// Its first rows are scheduled.
    pub fn started(&mut self, cached_tokens: u32, queue: Duration, adapter_load: Duration) {
        self.times.cached_tokens = cached_tokens;
        self.times.queue = Some((queue, adapter_load));
        self.move_to(Some(Stage::Running));
        let metrics = &self.telemetry.requests;
        metrics.prefix_query.add(self.times.prompt_tokens.into());
        metrics.prefix_hit.add(cached_tokens.into());
        metrics.queue.observe_duration(queue);
        if self.times.served.adapter.is_some() {
            metrics.adapter_load.observe_duration(adapter_load);
        }
    }

    pub fn token(&mut self) {
        let now = Instant::now();
        let metrics = &self.telemetry.requests;
        match self.times.last_token {
            Some(last) => metrics.inter_token.observe_duration(now - last),
            None => {
                let began = self.observation.began();
                metrics.time_to_first_token.observe_duration(now - began);
                self.times.first_token = Some(now);
            }
        }
        metrics.completion_tokens.increment();
        self.times.last_token = Some(now);
        self.times.completion_tokens += 1;
    }

    pub fn end(mut self, outcome: Outcome) {
        self.times.outcome = outcome;
    }

    /// Adapters are listed with what their requests do; the base model is not.
    fn move_to(&mut self, next: Option<Stage>) {
        let before = std::mem::replace(&mut self.stage, next);
        let Some(adapter) = self.times.served.adapter_name() else { return };
        let in_flight = self.telemetry.requests.in_flight();
        if let Some(stage) = before {
            in_flight.leave(adapter, stage);
        }
        if let Some(stage) = next {
            in_flight.enter(adapter, stage);
        }
    }

    fn count(&self) {
        let Ended { served, outcome, prompt_tokens, .. } = &self.times;
        let metrics = &self.telemetry.requests;
        metrics.outcomes.increment(outcome);
        metrics.prompt_tokens.add((*prompt_tokens).into());
        if let Some(per_token) = self.times.per_output_token() {
            metrics.time_per_output_token.observe_duration(per_token);
        }
        let now = Instant::now();
        let weight = u64::from(*prompt_tokens) + u64::from(self.times.completion_tokens);
        let count = |uses: &mut Uses| self.count_uses(uses);
        metrics.tenants.update(served.tenant, weight, now, count);
        if let Some(adapter) = served.adapter {
            metrics.adapters.update((served.tenant, adapter), weight, now, count);
        }
    }

    fn count_uses(&self, uses: &mut Uses) {
        let times = &self.times;
        uses.requests += 1;
        uses.prompt_tokens += u64::from(times.prompt_tokens);
        uses.cached_tokens += u64::from(times.cached_tokens);
        uses.completion_tokens += u64::from(times.completion_tokens);
        if let Some((queue, _)) = times.queue {
            uses.queue.observe(queue);
        }
        if let Some(first) = times.first_token {
            uses.time_to_first_token.observe(first - self.observation.began());
        }
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        self.move_to(None);
        self.count();
        self.observation.generated(self.times.clone());
    }
}

impl Ended {
    /// Between tokens, on average; None of an answer of one.
    fn per_output_token(&self) -> Option<Duration> {
        let decode = self.last_token? - self.first_token?;
        (self.completion_tokens > 1).then(|| decode / (self.completion_tokens - 1))
    }
}
