//! Around every request: its id, its trace, and an eye on its answer until that has ended.

use super::observation::{ErrorCode, Observation};
use super::{Telemetry, trace};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use lorikeet_contract::RequestId;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// nginx's status for a client that is gone before there is an answer.
const CLIENT_GONE: u16 = 499;

/// The id is always ours: a client's own could not be trusted to name one request only.
pub async fn observe(
    State(telemetry): State<Arc<Telemetry>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = RequestId::new();
    // The pattern, not the path: whatever someone pastes into an address stays out of logs.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    let span = telemetry.traces.begin(request.headers(), request.method(), route);
    let answer = span.answer_header();
    let observation = Observation::new(telemetry, id, request.method(), route, span);
    let observation = Arc::new(observation);
    request.extensions_mut().insert(id);
    request.extensions_mut().insert(observation.clone());
    let watch = Arc::new(Watch { observation, status: AtomicU16::new(CLIENT_GONE) });
    request.extensions_mut().insert(Unfinished { _watch: watch.clone() });

    let mut response = next.run(request).await;
    watch.status.store(response.status().as_u16(), Ordering::Relaxed);
    if let Some(code) = response.extensions().get::<ErrorCode>() {
        watch.observation.failed(*code);
    }
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response.headers_mut().extend(answer.map(|value| (trace::TRACERESPONSE, value)));
    response.map(|body| Body::new(Watched { body, _watch: watch }))
}

/// Ends the observation when it is dropped, whichever way the answer goes.
struct Watch {
    observation: Arc<Observation>,
    status: AtomicU16,
}

/// In a request's extensions. Whoever goes on with a request whose client may be gone holds it, and the
/// request has not ended before.
#[derive(Clone)]
pub struct Unfinished {
    _watch: Arc<Watch>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.observation.end(self.status.load(Ordering::Relaxed));
    }
}

struct Watched {
    /// Dropped first: what it still says of the request is heard.
    body: Body,
    _watch: Arc<Watch>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
