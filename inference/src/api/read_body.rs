//! A request's body, read whole before anything is done for it: a client that sends it slowly holds a
//! connection and what has come of the body, and not for long.

use super::error::ApiError;
use super::{Api, MAX_BODY_BYTES};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt;

/// What the bodies of all requests take together, until these have been answered or stream. When there
/// is no more, a request is refused as by a full queue.
const ROOM_KIB: usize = 512 << 10;

/// Of a body that is too large so much is read and dropped, so that its client has sent it and reads
/// why it is refused, instead of a broken connection.
const READ_AT_MOST: usize = 4 * MAX_BODY_BYTES;

const KIB: usize = 1024;

pub struct Bodies {
    /// In KiB.
    room: Arc<Semaphore>,
    /// A client that has not sent its whole body by then is refused.
    within: Duration,
}

/// The room that a body takes.
type Held = Option<OwnedSemaphorePermit>;

impl Bodies {
    pub fn new(within: Duration) -> Self {
        Self { room: Arc::new(Semaphore::new(ROOM_KIB)), within }
    }

    async fn read(&self, body: Body) -> Result<(Bytes, Held), ApiError> {
        tokio::time::timeout(self.within, self.read_all(body))
            .await
            .map_err(|_| ApiError::BodyTooSlow { within: self.within })?
    }

    async fn read_all(&self, body: Body) -> Result<(Bytes, Held), ApiError> {
        let too_large = ApiError::BodyTooLarge { limit: MAX_BODY_BYTES };
        if body.size_hint().lower() > READ_AT_MOST as u64 {
            return Err(too_large);
        }
        let mut is_too_large = body.size_hint().lower() > MAX_BODY_BYTES as u64;
        let (mut whole, mut held, mut length) = (Vec::new(), Held::None, 0);
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| ApiError::Invalid {
                message: "The body could not be read.".into(),
                param: None,
            })?;
            length += piece.len();
            is_too_large |= length > MAX_BODY_BYTES;
            if length > READ_AT_MOST {
                break;
            }
            if is_too_large {
                (whole, held) = (Vec::new(), None);
                continue;
            }
            whole.extend_from_slice(&piece);
            self.hold(&mut held, length.div_ceil(KIB))?;
        }
        if is_too_large { Err(too_large) } else { Ok((whole.into(), held)) }
    }

    fn hold(&self, held: &mut Held, kib: usize) -> Result<(), ApiError> {
        let more = kib - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(more).map_err(|_| ApiError::Busy)?;
        let more = self.room.clone().try_acquire_many_owned(more).map_err(|_| ApiError::Busy)?;
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }
}

/// Handlers find the body in memory.
pub async fn read_whole(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if request.body().is_end_stream() {
        return Ok(next.run(request).await);
    }
    let (parts, body) = request.into_parts();
    let (body, _held) = api.bodies.read(body).await?;
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn bodies(room_kib: usize) -> Bodies {
        Bodies { room: Arc::new(Semaphore::new(room_kib)), within: Duration::from_secs(60) }
    }

    /// Of no length that is told ahead.
    fn in_pieces(bytes: usize) -> Body {
        let pieces = (0..bytes).step_by(100).map(move |at| vec![b'x'; (bytes - at).min(100)]);
        Body::from_stream(futures::stream::iter(pieces.map(Ok::<_, Infallible>)))
    }

    #[tokio::test]
    async fn bodies_share_one_room_and_give_it_back() {
        let bodies = bodies(4);
        let (first, held) = bodies.read(in_pieces(3000)).await.expect("room");
        assert_eq!((first.len(), bodies.room.available_permits()), (3000, 1));
        let refused = bodies.read(in_pieces(3000)).await;
        assert!(matches!(refused, Err(ApiError::Busy)));
        assert_eq!(bodies.room.available_permits(), 1, "a refused one holds nothing");
        drop(held);
        bodies.read(in_pieces(3000)).await.expect("room again");
    }

    #[tokio::test]
    async fn a_body_is_too_large_whether_or_not_it_tells_its_length() {
        let bodies = bodies(ROOM_KIB);
        let sizes = [MAX_BODY_BYTES + 1, READ_AT_MOST + 1];
        for body in sizes.into_iter().flat_map(|n| [Body::from(vec![b'x'; n]), in_pieces(n)]) {
            let refused = bodies.read(body).await;
            assert!(matches!(refused, Err(ApiError::BodyTooLarge { .. })));
            assert_eq!(bodies.room.available_permits(), ROOM_KIB, "it takes no room");
        }
    }
}
