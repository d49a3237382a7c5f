//! The gRPC service that nodes dial.

use super::feed::Feed;
use super::nodes::{self, Connection};
use super::outgoing::Outgoing;
use super::session::{Session, receive, send};
use super::token::{self, SigningKey, TokenError};
use crate::metrics::Metrics;
use crate::usage::ingest::{Ingest, IngestError};
use lorikeet_contract::link::link_server::{Link, LinkServer};
use lorikeet_contract::link::{
    ControlMessage, Hello, MAX_MESSAGE_BYTES, NodeMessage, PROTOCOL_VERSION, USAGE_CURSOR_METADATA,
    UsageAck, UsageBatch, is_compatible, node_message,
};
use lorikeet_contract::usage::NodeClaims;
use lorikeet_contract::{BaseModelSpec, NodeId};
use sqlx::PgPool;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::server::{Server, ServerTlsConfig, TcpIncoming};
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

/// A node says hello at once; a stream that does not is closed after this.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Between HTTP/2 pings on a silent connection, and how long one may stay unanswered.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Between two sweeps of what acknowledgements alone do not settle.
const SWEEP: Duration = Duration::from_secs(5);

pub struct LinkParts {
    /// The ingest pool.
    pub pool: PgPool,
    /// Signs node tokens.
    pub key: SigningKey,
    /// `None`: in the clear.
    pub tls: Option<ServerTlsConfig>,
    pub metrics: Arc<Metrics>,
}

/// Serves nodes on `listener` until `shutdown`; then closes their streams and notes it.
pub async fn serve(
    listener: TcpListener,
    parts: LinkParts,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let LinkParts { pool, key, tls, metrics } = parts;
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    if let Some(tls) = tls {
        server = server.tls_config(tls)?;
    }
    let feed = Feed::new(pool.clone());
    let tasks = TaskTracker::new();
    tasks.spawn(feed.clone().run(shutdown.clone()));
    tasks.spawn(sweep(pool.clone(), shutdown.clone()));
    let ingest = Ingest::new(pool.clone(), metrics);
    tasks.spawn(ingest.clone().run(shutdown.clone()));
    let service = Service {
        pool,
        key,
        feed,
        ingest,
        streams: Arc::default(),
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
    };
    let service = LinkServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let served = server
        .add_service(service)
        .serve_with_incoming_shutdown(
            // Small messages must not wait for one another: a revocation is one of them.
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.clone().cancelled_owned(),
        )
        .await;
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    served
}

/// Settles what no acknowledgement settles by itself: versions that only waited for a node which
/// has gone, and nodes whose process died without a word.
async fn sweep(pool: PgPool, shutdown: CancellationToken) {
    let mut failing = false;
    loop {
        let swept = async {
            nodes::sweep_stale(&pool).await?;
            nodes::settle_versions(&pool).await
        };
        match swept.await {
            Ok(_) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "nodes and versions cannot be swept, trying on");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
    }
}

/// The stream that serves each node from this process.
type Streams = Arc<Mutex<HashMap<NodeId, (Uuid, CancellationToken)>>>;

struct Service {
    pool: PgPool,
    key: SigningKey,
    feed: Feed,
    ingest: Ingest,
    streams: Streams,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Service {
    fn authenticate(&self, metadata: &MetadataMap) -> Result<(NodeId, NodeClaims), Status> {
        let refused = |error: TokenError| Status::unauthenticated(error.to_string());
        let token = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| refused(TokenError::Missing))?;
        self.key.verify(token).map_err(refused)
    }

    /// Makes `connection` the node's only stream here; the one before it is closed.
    fn take_over(&self, connection: Connection) -> CancellationToken {
        let closed = self.shutdown.child_token();
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, before)) = streams.insert(connection.node, (connection.id, closed.clone()))
        {
            before.cancel();
        }
        closed
    }
}

fn leave(streams: &Streams, connection: Connection) {
    let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
    if streams.get(&connection.node).is_some_and(|(id, _)| *id == connection.id) {
        streams.remove(&connection.node);
    }
}

#[tonic::async_trait]
impl Link for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<ControlMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (node, claims) = self.authenticate(request.metadata())?;
        let mut inbound = request.into_inner();
        let mut hello = first_message(&mut inbound).await?;
        let base = check_hello(&hello, node)?;
        let token_lasts = token::lasts(&claims);
        if hello.name.is_empty() {
            hello.name = claims.name;
        }
        // The node may have talked to a process that was ahead of this one.
        self.feed.refresh().await.map_err(unavailable)?;
        let outgoing = Outgoing::new(&hello, &self.feed.world());
        let connection = Connection { node, id: Uuid::now_v7() };
        let held = outgoing.held_revision();
        let enabled = nodes::attached(&self.pool, connection, &hello, &base, held)
            .await
            .map_err(unavailable)?;
        if !enabled {
            return Err(Status::permission_denied(format!("{node} is disabled by an operator")));
        }
        tracing::info!(%node, name = hello.name, revision = held, "node attached");
        let closed = self.take_over(connection);
        let session = Arc::new(Session::new(connection, outgoing, closed, token_lasts));
        let stream = send(session.clone(), self.feed.clone());
        let (pool, feed, streams) = (self.pool.clone(), self.feed.clone(), self.streams.clone());
        self.tasks.spawn(async move {
            receive(&session, inbound, &pool, &feed).await;
            leave(&streams, connection);
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn ship_usage(&self, request: Request<UsageBatch>) -> Result<Response<UsageAck>, Status> {
        let (node, _) = self.authenticate(request.metadata())?;
        match self.ingest.ship(node, request.into_inner()).await {
            Ok(ack) => Ok(Response::new(ack)),
            Err(error) => Err(usage_status(node, error)),
        }
    }
}

async fn first_message(inbound: &mut Streaming<NodeMessage>) -> Result<Hello, Status> {
    let message = tokio::time::timeout(HELLO_WITHIN, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
    match message.and_then(|m| m.message) {
        Some(node_message::Message::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message of a node is Hello")),
    }
}

fn check_hello(hello: &Hello, node: NodeId) -> Result<BaseModelSpec, Status> {
    if !is_compatible(hello.protocol_version) {
        return Err(Status::failed_precondition(format!(
            "this control plane speaks protocol version {PROTOCOL_VERSION} and its neighbours, \
             the node speaks {}: upgrade the older of the two",
            hello.protocol_version
        )));
    }
    if hello.node_id != node.to_string() {
        return Err(Status::permission_denied(format!(
            "the token is of {node}, the node says it is another"
        )));
    }
    let base = hello
        .base_model
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("the node names no base model"))?;
    BaseModelSpec::from_proto(base)
        .map_err(|e| Status::invalid_argument(format!("weights_digest of the base model: {e}")))
}

/// The cause is logged here and not sent: it may quote SQL.
fn unavailable(error: sqlx::Error) -> Status {
    tracing::warn!(%error, "a node's call needs the database, which does not answer");
    Status::unavailable("the database does not answer; try again")
}

fn usage_status(node: NodeId, error: IngestError) -> Status {
    match error {
        IngestError::Database(error) => unavailable(error),
        IngestError::Gap { cursor, .. } => {
            tracing::warn!(%node, reason = %error, "usage records are missing, asking for them");
            let mut status = Status::failed_precondition(error.to_string());
            status.metadata_mut().insert(USAGE_CURSOR_METADATA, MetadataValue::from(cursor));
            status
        }
        IngestError::OtherNode => {
            tracing::warn!(%node, "a node ships usage in another node's name");
            Status::permission_denied(error.to_string())
        }
        IngestError::Batch(_) => Status::invalid_argument(error.to_string()),
    }
}
