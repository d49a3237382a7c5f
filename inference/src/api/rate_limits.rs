//! A tenant's limits at the door: what they turn away, and what every answer tells of them, in OpenAI's
//! headers.

use super::Api;
use super::auth::Caller;
use super::error::ApiError;
use crate::limits::Level;
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of one limit: how much there is, how much is left, and when all of it is there again.
struct Names {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
}

const REQUESTS: Names = Names {
    limit: HeaderName::from_static("x-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-ratelimit-reset-requests"),
};

const TOKENS: Names = Names {
    limit: HeaderName::from_static("x-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-ratelimit-reset-tokens"),
};

/// For browsers, which must be told what they may read.
pub fn header_names() -> [HeaderName; 6] {
    let (requests, tokens) = (REQUESTS, TOKENS);
    [
        requests.limit,
        requests.remaining,
        requests.reset,
        tokens.limit,
        tokens.remaining,
        tokens.reset,
    ]
}

/// Numbers are of this node's part of the tenant's limits, at the moment the answer begins.
pub async fn tell(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    let levels = api.limiter.levels(caller.tenant, caller.allowance(), Instant::now());
    for (names, level) in [(REQUESTS, levels.requests), (TOKENS, levels.tokens)] {
        if let Some(level) = level {
            insert(response.headers_mut(), names, level);
        }
    }
    response
}

fn insert(headers: &mut HeaderMap, names: Names, level: Level) {
    headers.insert(names.limit, level.limit.into());
    headers.insert(names.remaining, level.remaining.into());
    // Of a limit of zero there is never anything.
    if let Some(reset) = level.reset
        && let Ok(value) = HeaderValue::try_from(duration(reset))
    {
        headers.insert(names.reset, value);
    }
}

/// Takes one of the tenant's requests and places before anything costly is done for it. The place goes
/// with the caller to whatever answers; a request that gets no tokens of the engine counts for nothing.
pub async fn admit(
    State(api): State<Arc<Api>>,
    Extension(mut caller): Extension<Caller>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if request.method() == Method::POST {
        let permit = api.limiter.enter(caller.tenant, caller.allowance(), Instant::now())?;
        caller.permit = Some(Arc::new(permit));
        request.extensions_mut().insert(caller);
    }
    Ok(next.run(request).await)
}

/// As OpenAI writes it: `0s`, `12ms`, `7.66s`, `6m0s`.
fn duration(time: Duration) -> String {
    let ms = time.as_nanos().div_ceil(1_000_000);
    if ms > 0 && ms < 1000 {
        return format!("{ms}ms");
    }
    let (minutes, seconds) = (ms / 60_000, ms % 60_000);
    let fraction = format!(".{:03}", seconds % 1000);
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    let seconds = format!("{}{fraction}s", seconds / 1000);
    if minutes == 0 { seconds } else { format!("{minutes}m{seconds}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_writes_them() {
        let of_ms = |ms| duration(Duration::from_millis(ms));
        assert_eq!([of_ms(0), of_ms(12), of_ms(1000)], ["0s", "12ms", "1s"]);
        assert_eq!([of_ms(7660), of_ms(360_000), of_ms(61_005)], ["7.66s", "6m0s", "1m1.005s"]);
        assert_eq!(duration(Duration::from_nanos(1)), "1ms", "never before it is true");
    }
}
