//! What surrounds every request: an id, a log line, a time limit, a size limit, security headers,
//! and an answer even to a panic.

use crate::auth::RequestId;
use crate::config::Config;
use crate::error::{ApiError, with_body};
use crate::metrics::Metrics;
use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use lorikeet_metrics::method_label;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use uuid::Uuid;

/// Room for a safetensors header of 1 MiB in base64.
const MAX_BODY_BYTES: usize = 2 << 20;
const TIME_LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn surround(router: Router, config: &Config, metrics: Arc<Metrics>) -> Router {
    router
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn(limit_time))
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(from_fn(crate::pages::as_page))
        .layer(from_fn_with_state(Arc::new(security_headers(config)), add_security_headers))
        .layer(from_fn_with_state(metrics, identify_and_log))
}

/// The id is always ours: a client's own could not be trusted to name one request only.
async fn identify_and_log(
    State(metrics): State<Arc<Metrics>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = format!("req_{}", Uuid::now_v7().simple());
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    // The pattern, not the path: whatever someone pastes into an address stays out of the log.
    let path = request.extensions().get::<MatchedPath>().cloned();
    let span = tracing::info_span!("request", id);
    let started = Instant::now();
    let response = next.run(request).instrument(span.clone()).await;
    let mut response = with_body(response, &id);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    let path = path.as_ref().map_or("other", MatchedPath::as_str);
    let status = response.status().as_u16();
    metrics.http.increment((method_label(method.as_str()), path.to_owned(), status));
    metrics.http_seconds.observe_duration(started.elapsed());
    let _entered = span.enter();
    tracing::info!(
        %method,
        path,
        status,
        ms = started.elapsed().as_millis() as u64,
        "request served"
    );
    response
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(TIME_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::Timeout.into_response(),
    }
}

fn answer_panic(panic: Box<dyn Any + Send>) -> Response {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    ApiError::Internal(anyhow::anyhow!("handler panicked: {what}")).into_response()
}

async fn add_security_headers(
    State(headers): State<Arc<HeaderMap>>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in headers.iter() {
        response.headers_mut().entry(name).or_insert_with(|| value.clone());
    }
    response
}

/// Set unless the handler has set its own (a static file's Cache-Control).
fn security_headers(config: &Config) -> HeaderMap {
    let upload_origin = config.objects.public_endpoint.origin().ascii_serialization();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
         font-src 'self'; connect-src 'self' {upload_origin}; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'"
    );
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "same-origin");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    set(header::CACHE_CONTROL, "no-store");
    if config.public_url.scheme() == "https" {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000; includeSubDomains");
    }
    if let Ok(value) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_panic_is_answered_as_an_error_that_tells_nothing_of_it() {
        let config = Config::from_vars(|name| {
            Some(match name {
                "LORIKEET_DATABASE_URL" => "postgres://lk_app@localhost/x".to_owned(),
                "LORIKEET_S3_ENDPOINT" => "http://127.0.0.1:7720".to_owned(),
                "LORIKEET_S3_ACCESS_KEY" | "LORIKEET_S3_SECRET_KEY" => "x".to_owned(),
                "LORIKEET_NODE_SIGNING_KEY" => "/x".to_owned(),
                _ => return None,
            })
        });
        async fn handler() {
            panic!("a detail");
        }
        let router =
            surround(Router::new().route("/", get(handler)), &config.unwrap(), Arc::default());
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let body = to_bytes(response.into_body(), 4096).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(body.contains("internal") && !body.contains("a detail"), "{body}");
        assert!(body.contains(&id), "{body}");
    }
}
