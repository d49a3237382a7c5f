//! By when a request must have ended: what its client has asked for, and what the node gives any.

use super::Api;
use super::auth::Caller;
use super::error::ApiError;
use axum::extract::FromRequestParts;
use axum::http::HeaderName;
use axum::http::request::Parts;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seconds, whole or with a fraction.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-timeout");

/// Shorter ones would end requests before they have begun.
pub const SHORTEST: f64 = 1.0;

/// Counted from the request's arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// None: later than the clock can tell.
    pub at: Option<Instant>,
    within: Duration,
    pub set_by: SetBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetBy {
    Client,
    Node,
}

impl Deadline {
    /// The earlier of the two.
    fn new(arrived: Instant, asked: Option<Duration>, most: Duration) -> Self {
        let (within, set_by) = match asked.filter(|asked| *asked < most) {
            Some(asked) => (asked, SetBy::Client),
            None => (most, SetBy::Node),
        };
        Self { at: arrived.checked_add(within), within, set_by }
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.within.as_secs_f64();
        match self.set_by {
            SetBy::Client => write!(f, "the {seconds} s of its `X-Request-Timeout`"),
            SetBy::Node => write!(f, "the {seconds} s that this node gives a request"),
        }
    }
}

impl FromRequestParts<Arc<Api>> for Deadline {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let asked = match parts.headers.get(HEADER) {
            Some(value) => Some(value.to_str().ok().and_then(seconds).ok_or_else(|| {
                let message = format!(
                    "`X-Request-Timeout` must be a number of seconds, at least {SHORTEST}."
                );
                ApiError::invalid("X-Request-Timeout", message)
            })?),
            None => None,
        };
        let caller = parts.extensions.get::<Caller>().ok_or(ApiError::NoKey)?;
        Ok(Self::new(caller.observation.began(), asked, api.request_within))
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok().filter(|s: &f64| s.is_finite())?;
    // More than a duration can hold is no bound.
    (seconds >= SHORTEST).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_have_less_than_the_node_gives_and_not_more() {
        let (now, most) = (Instant::now(), Duration::from_secs(60));
        let of = |text: &str| Deadline::new(now, Some(seconds(text).expect("valid")), most);
        assert_eq!(
            (of("2.5").at, of("2.5").set_by),
            (Some(now + Duration::from_millis(2500)), SetBy::Client)
        );
        for text in ["60", "1e300"] {
            assert_eq!(of(text), Deadline::new(now, None, most));
        }
        assert_eq!(Deadline::new(now, None, Duration::MAX).at, None);
    }

    #[test]
    fn what_is_no_number_of_seconds_is_refused() {
        for text in ["", "soon", "0", "0.9", "-5", "NaN", "inf", "5s"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
