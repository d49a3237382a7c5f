//! The answer as server-sent events. The body is pulled: what it has not asked for has not been
//! accepted, and is not counted as delivered. When the connection goes, the body is dropped, and the
//! generation with it.

use super::chat::Shape;
use super::error::ApiError;
use super::generation::{Ending, Generation, Progress};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::convert::Infallible;

pub fn respond(generation: Generation, first: Progress, shape: Shape) -> Response {
    let events = Events { shape, stage: Stage::Opening(generation, first) };
    let body = futures::stream::unfold(events, |mut events| async move {
        let frame = events.next().await?;
        Some((Ok::<_, Infallible>(frame), events))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies of nginx's kind would wait for more.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(body)).into_response()
}

struct Events {
    shape: Shape,
    stage: Stage,
}

enum Stage {
    Opening(Generation, Progress),
    Running(Generation),
    /// The text is out; the account is not closed yet.
    Closing(Generation, Ending),
    Over,
}

impl Events {
    /// The next bytes of the body; None at its end.
    async fn next(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Opening(generation, first) => {
                let opening = event(&self.shape.opening());
                let rest = self.advance(generation, Ok(first)).await;
                Some([opening, rest].concat().into())
            }
            Stage::Running(mut generation) => {
                let progress = generation.next().await;
                Some(self.advance(generation, progress).await.into())
            }
            Stage::Closing(generation, ending) => Some(self.close(generation, ending).await.into()),
            Stage::Over => None,
        }
    }

    async fn advance(
        &mut self,
        generation: Generation,
        progress: Result<Progress, ApiError>,
    ) -> Vec<u8> {
        let delivered = progress.and_then(|progress| generation.deliver().map(|()| progress));
        let (piece, ending) = match delivered {
            Ok(Progress::Piece(piece)) => (piece, None),
            Ok(Progress::End(piece, ending)) => (piece, Some(ending)),
            Err(error) => return failure(&generation.fail(error).await),
        };
        match ending {
            Some(ending) if piece.is_empty() => return self.close(generation, ending).await,
            Some(ending) => self.stage = Stage::Closing(generation, ending),
            None => self.stage = Stage::Running(generation),
        }
        event(&self.shape.piece(piece))
    }

    async fn close(&mut self, generation: Generation, ending: Ending) -> Vec<u8> {
        let counts = match generation.complete(ending).await {
            Ok(counts) => counts,
            Err(error) => return failure(&error),
        };
        let mut bytes = event(&self.shape.closing(ending));
        if self.shape.include_usage {
            bytes.extend(event(&self.shape.counts(counts)));
        }
        bytes.extend_from_slice(DONE);
        bytes
    }
}

const DONE: &[u8] = b"data: [DONE]\n\n";

fn event(data: &Value) -> Vec<u8> {
    format!("data: {data}\n\n").into_bytes()
}

/// The status is long sent: the error travels as the last event.
fn failure(error: &ApiError) -> Vec<u8> {
    [&event(&error.body())[..], DONE].concat()
}
