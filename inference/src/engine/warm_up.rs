//! Adapters loaded ahead of their requests because somebody asked.

use super::Engine;
use crate::adapters::residency::AdapterDemand;
use crate::adapters::{AdapterKey, AdapterManifest};
use crate::share::TenantShare;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Warm-ups of all tenants, and of one, under way at once. One more is refused.
const MAX_WARM_UPS: usize = 64;
const MAX_PER_TENANT: usize = 16;

/// Its turn on the device comes long before this; then it is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(180);

/// Why an adapter was not loaded ahead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WarmUpError {
    #[error("too many adapters are being loaded ahead of requests")]
    QueueFull,
    #[error("the adapter could not be loaded: {0}")]
    AdapterLoad(String),
    #[error("the engine is not running")]
    Stopped,
}

/// A warm-up on its way in.
pub(super) struct WarmUp {
    pub adapter: Arc<AdapterManifest>,
    pub share: TenantShare,
    pub reply: oneshot::Sender<Result<Duration, WarmUpError>>,
}

/// A warm-up under way; it wants the adapter as a request does.
pub(super) struct WarmingUp {
    key: AdapterKey,
    _demand: AdapterDemand,
    since: Instant,
    reply: oneshot::Sender<Result<Duration, WarmUpError>>,
}

impl Engine {
    pub(super) fn warm_up(&mut self, warm_up: WarmUp, now: Instant) {
        let WarmUp { adapter, share, reply } = warm_up;
        let of_tenant = |w: &&WarmingUp| w.key.tenant == adapter.key.tenant;
        let too_many = self.warm_ups.len() >= MAX_WARM_UPS
            || self.warm_ups.iter().filter(of_tenant).count() >= MAX_PER_TENANT;
        let demand = match self.residency.demand(&adapter, share, now) {
            _ if too_many => Err(WarmUpError::QueueFull),
            Ok(demand) => Ok(demand),
            Err(reason) => Err(WarmUpError::AdapterLoad(reason)),
        };
        match demand {
            Ok(_demand) => {
                self.scheduler.warms_up(adapter.key.tenant, share);
                let warming_up = WarmingUp { key: adapter.key, _demand, since: now, reply };
                self.warm_ups.push(warming_up);
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Answers those whose adapters have arrived, or failed.
    pub(super) fn settle_warm_ups(&mut self, now: Instant) {
        for warm_up in std::mem::take(&mut self.warm_ups) {
            let took = now.saturating_duration_since(warm_up.since);
            let result = if self.residency.lease(&warm_up.key).is_some() {
                Ok(took)
            } else if let Some(reason) = self.residency.failure(&warm_up.key) {
                Err(WarmUpError::AdapterLoad(reason.to_owned()))
            } else if took >= GIVEN_UP_AFTER {
                let seconds = GIVEN_UP_AFTER.as_secs();
                Err(WarmUpError::AdapterLoad(format!("it had no turn within {seconds} s")))
            } else {
                self.warm_ups.push(warm_up);
                continue;
            };
            answer(warm_up.reply, result);
        }
    }
}

fn answer(
    reply: oneshot::Sender<Result<Duration, WarmUpError>>,
    result: Result<Duration, WarmUpError>,
) {
    // Whoever asked may have stopped waiting.
    let _ = reply.send(result);
}
