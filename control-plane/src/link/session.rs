//! One node's stream while it lasts: the sending half is pulled by the transport, the receiving
//! half is a task that stores what the node says.

use super::feed::Feed;
use super::nodes::{self, Applied, Connection, Still};
use super::outgoing::{AckError, Acked, Outgoing};
use super::residency::Residency;
use lorikeet_contract::link::{
    ControlMessage, HEARTBEAT, Heartbeat, NodeMessage, Rejection, SILENCE, control_message,
    node_message,
};
use sqlx::PgPool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Between two tries to store what a node said while Postgres is away.
const RETRY: Duration = Duration::from_millis(500);

pub struct Session {
    connection: Connection,
    outgoing: Mutex<Outgoing>,
    /// There may be something to send that no change of the world announces.
    ask: Notify,
    /// When the transport last had room for a message.
    drained: Mutex<Instant>,
    closed: CancellationToken,
    /// How long the node's token was good for when the stream began.
    token_lasts: Duration,
}

impl Session {
    pub fn new(
        connection: Connection,
        outgoing: Outgoing,
        closed: CancellationToken,
        token_lasts: Duration,
    ) -> Self {
        Self {
            connection,
            outgoing: Mutex::new(outgoing),
            ask: Notify::new(),
            drained: Mutex::new(Instant::now()),
            closed,
            token_lasts,
        }
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drained(&self) -> MutexGuard<'_, Instant> {
        self.drained.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the session when the transport drops the stream, whatever the reason.
struct CloseOnDrop(CancellationToken);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The messages to the node. Each is made when the transport asks for it, so nothing queues up
/// behind a slow node, and a revocation waits for no more than the chunk on its way.
pub fn send(
    session: std::sync::Arc<Session>,
    feed: Feed,
) -> impl Stream<Item = Result<ControlMessage, Status>> {
    let moved = feed.subscribe();
    let guard = CloseOnDrop(session.closed.clone());
    futures::stream::unfold((session, feed, moved, guard), |(session, feed, mut moved, guard)| {
        async move {
            let heartbeat = Instant::now() + HEARTBEAT;
            let message = loop {
                *session.drained() = Instant::now();
                if session.closed.is_cancelled() {
                    return None;
                }
                // Before looking at the world, so that a change between the two is not missed.
                moved.borrow_and_update();
                let next = session.outgoing().next(&feed.world());
                if let Some(message) = next {
                    break message;
                }
                tokio::select! {
                    () = session.closed.cancelled() => return None,
                    changed = moved.changed() => changed.ok()?,
                    () = session.ask.notified() => {}
                    () = tokio::time::sleep_until(heartbeat) => break beat(),
                }
            };
            Some((Ok(ControlMessage { message: Some(message) }), (session, feed, moved, guard)))
        }
    })
}

fn beat() -> control_message::Message {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    control_message::Message::Heartbeat(Heartbeat { unix_ms })
}

/// Why a stream was closed from this side.
#[derive(Debug, thiserror::Error)]
enum Close {
    #[error("the node went away")]
    Gone,
    #[error("a newer stream of the node took over, or this process stops")]
    Replaced,
    #[error("nothing was heard for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the node did not take messages for {} s", SILENCE.as_secs())]
    NotDraining,
    #[error("its token has run out; issue a new one for this node")]
    Expired,
    #[error(transparent)]
    Ack(AckError),
    #[error("what it said cannot be stored: {0}")]
    Store(sqlx::Error),
}

/// Stores what the node says until the stream ends, then that it ended.
pub async fn receive(
    session: &Session,
    mut inbound: Streaming<NodeMessage>,
    pool: &PgPool,
    feed: &Feed,
) {
    let node = session.connection.node;
    let mut reported = Residency::default();
    let expired = tokio::time::sleep(session.token_lasts);
    tokio::pin!(expired);
    let close = loop {
        let received = tokio::select! {
            () = session.closed.cancelled() => break Close::Replaced,
            () = &mut expired => break Close::Expired,
            received = tokio::time::timeout(SILENCE, inbound.message()) => received,
        };
        let message = match received {
            Err(_) => break Close::Silent,
            Ok(Ok(Some(NodeMessage { message: Some(message) }))) => message,
            // A kind of message that a newer node knows.
            Ok(Ok(Some(NodeMessage { message: None }))) => continue,
            Ok(Ok(None) | Err(_)) => break Close::Gone,
        };
        if session.drained().elapsed() > SILENCE {
            break Close::NotDraining;
        }
        let note = match note(session, message, &mut reported, feed) {
            Ok(Some(note)) => note,
            Ok(None) => continue,
            Err(error) => break Close::Ack(error),
        };
        tokio::select! {
            () = session.closed.cancelled() => break Close::Replaced,
            stored = store(pool, session.connection, &note) => match stored {
                Ok(Still::Current) => {}
                Ok(Still::Replaced) => break Close::Replaced,
                Err(error) => break Close::Store(error),
            }
        }
    };
    session.closed.cancel();
    match close {
        Close::Gone | Close::Replaced => tracing::info!(%node, reason = %close, "node detached"),
        _ => tracing::warn!(%node, reason = %close, "node cut off"),
    }
    if let Err(error) = nodes::detached(pool, session.connection).await {
        // The sweep of stale nodes does it later.
        tracing::warn!(%node, %error, "that the node detached could not be stored");
    }
}

/// What a message changes in the rows of its node.
#[derive(Debug)]
enum Note {
    Seen,
    Revoked(u64),
    Resident(serde_json::Value),
    Applied(Applied),
}

/// Takes a message in; `None` when there is nothing to store.
fn note(
    session: &Session,
    message: node_message::Message,
    reported: &mut Residency,
    feed: &Feed,
) -> Result<Option<Note>, AckError> {
    let node = session.connection.node;
    let at = feed.world().position();
    let ack = match message {
        node_message::Message::Hello(_) => return Ok(None),
        node_message::Message::Heartbeat(_) => return Ok(Some(Note::Seen)),
        node_message::Message::RevocationAck(ack) => {
            return Ok(Some(Note::Revoked(ack.seq.min(at.revocation_seq))));
        }
        node_message::Message::Residency(report) => {
            return Ok(reported.take(report).map(Note::Resident));
        }
        node_message::Message::Ack(ack) => ack,
    };
    let acked = session.outgoing().acknowledged(&ack, at.cp_epoch)?;
    match acked {
        Acked::Stale => return Ok(None),
        Acked::Resync => {
            tracing::warn!(%node, revision = ack.revision, "node's manifest differs, sending it whole");
            session.ask.notify_one();
            return Ok(None);
        }
        Acked::Delta | Acked::Snapshot => {}
    }
    for Rejection { kind, id, reason } in &ack.rejected {
        tracing::warn!(%node, kind, id, reason, "node refuses a resource");
    }
    Ok(Some(Note::Applied(Applied {
        cp_epoch: ack.cp_epoch,
        revision: ack.revision,
        rejected: ack.rejected,
        whole: acked == Acked::Snapshot,
    })))
}

/// Repeats a write until Postgres has taken it. Meanwhile the node's further messages wait in the
/// transport's window, so nothing is dropped and nothing grows.
async fn store(pool: &PgPool, connection: Connection, note: &Note) -> Result<Still, sqlx::Error> {
    let mut failing = false;
    loop {
        match write(pool, connection, note).await {
            Err(error) if is_passing(&error) => {
                if !failing {
                    tracing::warn!(%error, "a node's message could not be stored, trying on");
                }
                failing = true;
                tokio::time::sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

async fn write(pool: &PgPool, connection: Connection, note: &Note) -> Result<Still, sqlx::Error> {
    match note {
        Note::Seen => nodes::seen(pool, connection).await,
        Note::Revoked(seq) => nodes::revoked(pool, connection, *seq).await,
        Note::Resident(report) => nodes::resident(pool, connection, report).await,
        Note::Applied(applied) => {
            let still = nodes::applied(pool, connection, applied).await?;
            nodes::settle_versions(pool).await?;
            Ok(still)
        }
    }
}

/// True when the same statement may succeed later: no connection, a server that stops or starts,
/// a lock. Not so for a statement that Postgres refuses for what it says.
fn is_passing(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return true };
    let class = error.code().map(|code| code.chars().take(2).collect::<String>());
    matches!(class.as_deref(), Some("08" | "40" | "53" | "55" | "57" | "58"))
}
