//! The access log: one line for each request.

use super::observation::Summary;
use std::time::Duration;

/// The filter `LORIKEET_LOG=info,access=off` silences it; probes are logged at debug.
const TARGET: &str = "access";

macro_rules! line {
    ($level:ident, $summary:expr) => {{
        let summary: &Summary = $summary;
        let first = summary.generations.iter().min_by_key(|ended| ended.submitted);
        let tokens = |of: fn(&super::course::Ended) -> u32| {
            let counts = summary.generations.iter().map(of);
            (!summary.generations.is_empty()).then(|| counts.sum::<u32>())
        };
        let waited = first.and_then(|ended| ended.queue);
        let first_token = summary.generations.iter().filter_map(|ended| ended.first_token).min();
        tracing::$level!(
            target: TARGET,
            request = %summary.id,
            method = summary.method,
            route = summary.route,
            status = summary.status,
            outcome = summary.outcome(),
            tenant = summary.tenant.map(tracing::field::display),
            model = first.map(|ended| ended.served.model.as_str()),
            adapter = first.and_then(|ended| ended.served.adapter).map(tracing::field::display),
            prompt_tokens = tokens(|ended| ended.prompt_tokens),
            cached_tokens = tokens(|ended| ended.cached_tokens),
            completion_tokens = tokens(|ended| ended.completion_tokens),
            adapter_load_ms = waited.map(|(_, load)| ms(load)),
            queue_ms = waited.map(|(queue, _)| ms(queue)),
            first_token_ms = first_token.map(|at| ms(at - summary.began)),
            duration_ms = ms(summary.duration),
            trace = summary.trace_id,
            "request"
        );
    }};
}

pub fn log(summary: &Summary) {
    if summary.is_probe() {
        line!(debug, summary);
    } else {
        line!(info, summary);
    }
}

/// To a microsecond: a warm refusal takes a few.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
