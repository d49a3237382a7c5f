//! How much runs at once, and how long it waits.

use super::vars::{ConfigError, Vars};
use crate::scheduler::SchedulerConfig;
use std::time::Duration;

/// Requests that a node holds at once, waiting or running, unless told otherwise. One more gets 429.
const MAX_REQUESTS: usize = 512;

/// Longer than anybody reads an answer; what hangs still ends.
const REQUEST_WITHIN: Duration = Duration::from_secs(3600);

/// A number, or auto.
const MAX_ROWS: &str = "LORIKEET_MAX_NUM_BATCHED_TOKENS";

pub(super) fn scheduler(vars: Vars<'_>) -> Result<SchedulerConfig, ConfigError> {
    let default = SchedulerConfig::default();
    Ok(SchedulerConfig {
        max_num_seqs: vars
            .positive("LORIKEET_MAX_NUM_SEQS")?
            .map_or(default.max_num_seqs, |n| n as usize),
        max_num_batched_tokens: match vars.optional::<String>(MAX_ROWS)?.as_deref() {
            // The backend's own measure then bounds it.
            Some("auto") => usize::MAX,
            _ => vars.positive(MAX_ROWS)?.map_or(default.max_num_batched_tokens, |n| n as usize),
        },
        queue_timeout: vars
            .positive("LORIKEET_QUEUE_SECONDS")?
            .map_or(default.queue_timeout, Duration::from_secs),
    })
}

pub(super) fn max_requests(vars: Vars<'_>) -> Result<usize, ConfigError> {
    Ok(vars.positive("LORIKEET_MAX_REQUESTS")?.map_or(MAX_REQUESTS, |n| n as usize))
}

pub(super) fn request_within(vars: Vars<'_>) -> Result<Duration, ConfigError> {
    let within = vars.positive("LORIKEET_REQUEST_SECONDS")?;
    Ok(within.map_or(REQUEST_WITHIN, Duration::from_secs))
}
