//! The answer as server-sent events. The body is pulled: what it has not asked for has not been
//! accepted, and is not counted as delivered. When the connection goes, the body is dropped, and the
//! generation with it.

use super::error::ApiError;
use super::generation::{Ending, Generation, Progress};
use super::shape::{Events, Shape};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use std::convert::Infallible;

pub fn respond<S: Shape>(generation: Generation, first: Progress, shape: S) -> Response {
    let stream = Stream { shape, stage: Stage::Opening(generation, first) };
    let body = futures::stream::unfold(stream, |mut stream| async move {
        let frame = stream.next().await?;
        Some((Ok::<_, Infallible>(frame), stream))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies of nginx's kind would wait for more.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(body)).into_response()
}

struct Stream<S> {
    shape: S,
    stage: Stage,
}

enum Stage {
    Opening(Generation, Progress),
    Running(Generation),
    /// The text is out, the last choice is about to end, and the account is not closed yet.
    Closing(Generation, usize, Ending),
    Over,
}

impl<S: Shape> Stream<S> {
    /// The next bytes of the body; None at its end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Events::default();
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Opening(generation, first) => {
                self.shape.opening(&mut out);
                self.advance(generation, Ok(first), &mut out).await;
            }
            Stage::Running(mut generation) => {
                let progress = generation.next().await;
                self.advance(generation, progress, &mut out).await;
            }
            Stage::Closing(generation, choice, ending) => {
                self.close(generation, choice, ending, &mut out).await;
            }
            Stage::Over => return None,
        }
        Some(out.0.into())
    }

    async fn advance(
        &mut self,
        generation: Generation,
        progress: Result<Progress, ApiError>,
        out: &mut Events,
    ) {
        let delivered = progress.and_then(|progress| generation.deliver().map(|()| progress));
        let Progress { choice, piece, ending } = match delivered {
            Ok(progress) => progress,
            Err(error) => return self.shape.fail(&generation.fail(error).await, out),
        };
        let has_text = !piece.is_empty();
        if has_text {
            self.shape.piece(choice, piece, out);
        }
        match ending {
            Some(ending) if generation.is_complete() && has_text => {
                self.stage = Stage::Closing(generation, choice, ending);
            }
            Some(ending) if generation.is_complete() => {
                self.close(generation, choice, ending, out).await;
            }
            Some(ending) => {
                self.shape.end(choice, ending, out);
                self.stage = Stage::Running(generation);
            }
            None => self.stage = Stage::Running(generation),
        }
    }

    async fn close(
        &mut self,
        generation: Generation,
        choice: usize,
        ending: Ending,
        out: &mut Events,
    ) {
        match generation.complete().await {
            Ok(counts) => {
                self.shape.end(choice, ending, out);
                self.shape.close(counts, out);
            }
            Err(error) => self.shape.fail(&error, out),
        }
    }
}
