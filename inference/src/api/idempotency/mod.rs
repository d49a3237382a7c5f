//! `Idempotency-Key`: a request that is repeated is not run, nor billed, again.
//!
//! With a key a request runs to its end whether or not the client is still there, so that one who lost
//! the connection finds the whole answer, streamed ones too, by asking again within ten minutes. Kept is
//! what was sent with a status of success, byte for byte, a stream with all of its events; after an error
//! the same key tries anew. Kept in memory, on this node, within bounds.

mod recording;
mod store;
#[cfg(test)]
mod tests;

use super::Api;
use super::auth::Caller;
use super::error::ApiError;
use crate::telemetry::Unfinished;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, request};
use axum::middleware::Next;
use axum::response::Response;
use recording::{Claim, Recording};
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use store::{Answer, Answers, Bounds, Fingerprint, Found};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Said of an answer that was kept.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Characters of a key.
pub const MAX_KEY: usize = 255;

/// Pieces of an answer on their way from its task to its client; while it is full the answer waits for
/// the client, until that is cut off.
const ON_THE_WAY: usize = 16;

/// What a node keeps, and the requests that run without needing their clients.
#[derive(Debug, Default)]
pub struct Idempotency {
    answers: Mutex<Answers>,
    /// To be waited for before the usage log closes.
    running: TaskTracker,
}

impl Default for Answers {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Idempotency {
    /// Returns when no request runs without its client any more; no new ones may come.
    pub async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Around every handler of a POST.
pub async fn once(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Extension(unfinished): Extension<Unfinished>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if request.method() != Method::POST {
        return Ok(next.run(request).await);
    }
    let Some(key) = key(request.headers())? else { return Ok(next.run(request).await) };
    let (parts, body) = request.into_parts();
    let whole = Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await;
    let body = whole.map_err(|_| ApiError::Internal)?;
    let fingerprint = fingerprint(&parts, &body);
    let found = api.idempotency.answers().find(caller.tenant, &key, fingerprint, Instant::now());
    match found {
        Found::Nothing => {}
        Found::Running => return Err(ApiError::StillRunning),
        Found::Other => return Err(ApiError::KeyReused),
        Found::NotKept => return Err(ApiError::AnswerNotKept),
        Found::Answered(answer) => return Ok(replay(&answer)),
    }
    let claim = Claim::new(api.clone(), caller.tenant, key);
    let request = Request::from_parts(parts, Body::from(body));
    let (head, answered) = oneshot::channel();
    let running = run(claim, request, next, head).in_current_span();
    api.idempotency.running.spawn(async move {
        running.await;
        drop(unfinished);
    });
    // An error is a handler that panicked.
    answered.await.map_err(|_| ApiError::Internal)
}

/// Answers the request, for its client if that is still there and for those who ask again.
async fn run(claim: Claim, request: Request, next: Next, head: oneshot::Sender<Response>) {
    let (parts, body) = next.run(request).await.into_parts();
    if !parts.status.is_success() {
        drop(claim);
        let _ = head.send(Response::from_parts(parts, body));
        return;
    }
    let mut recording = Recording::new(claim, parts.status, parts.headers.clone());
    let (to_client, pieces) = mpsc::channel(ON_THE_WAY);
    let pieces = ReceiverStream::new(pieces).map(Ok::<Bytes, Infallible>);
    let _ = head.send(Response::from_parts(parts, Body::from_stream(pieces)));
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        // A body that breaks off is none to keep.
        let Ok(piece) = piece else { return };
        recording.push(&piece);
        let _ = to_client.send(piece).await;
    }
    // Before the client sees the end, so that a repeat from then on finds the answer.
    recording.finish(Instant::now());
}

fn replay(answer: &Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body.clone()));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers.clone();
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=MAX_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::invalid(
            KEY.as_str(),
            format!("Idempotency-Key must be 1 to {MAX_KEY} printable ASCII characters."),
        )),
    }
}

/// What makes two requests the same.
fn fingerprint(parts: &request::Parts, body: &[u8]) -> Fingerprint {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let hash = Sha256::new()
        .chain_update((target.len() as u64).to_le_bytes())
        .chain_update(target)
        .chain_update(body)
        .finalize();
    Fingerprint(hash.into())
}
