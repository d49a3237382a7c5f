//! The HTTP server of both planes. Every connection is a task that it knows, so that when it has ended
//! nobody speaks to a client any more, and what a request held has been let go.
//!
//! A client can hold a connection, and not for long: heads come in time and within bounds, an answer is
//! made as it is taken, and one that is not taken ends. How long a body may take is for whoever reads it.
//!
//! HTTP/1.1 only, as everything that is put in front speaks it: each answer has a socket of its own, on
//! which a client that does not read can be told from one that does.

mod patience;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lorikeet_metrics::Counter;
use patience::Impatient;
use socket2::SockRef;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Header lines of a request; one with more gets 431.
const MAX_HEADERS: usize = 100;

/// Bytes of a request's head that are taken in any case; one of more than twice that gets 431. Also of an
/// answer that waits in memory for its client: there is no more than this and what the kernel holds.
const MAX_BUFFER: usize = 32 << 10;

/// What clients must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Connections at once; further ones wait to be accepted.
    pub max_connections: usize,
    /// For a request's head, from the first moment of a connection or the end of the answer before. Longer
    /// than load balancers keep an idle connection, so that it is they who close it.
    pub head: Duration,
    /// For a client to take 16 KiB of what waits for it, or all of that; then it is cut off.
    pub reading: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            max_connections: 8192,
            head: Duration::from_secs(65),
            reading: Duration::from_secs(30),
        }
    }
}

/// Bytes of an answer that the kernel takes from us before its client does. Left to itself it takes
/// megabytes, and a client that does not read would go unnoticed for as long.
const SEND_BUFFER: usize = 128 << 10;

/// Dropped, it breaks off what it has, and does not wait for that.
pub struct HttpServer {
    connections: Connections,
}

/// Shared by the server and the tasks of its connections.
#[derive(Clone)]
struct Connections {
    patience: Patience,
    /// Clients cut off because they did not take their answers.
    cut_off: Arc<Counter>,
    /// One permit for each connection that may still come.
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Nothing new: a connection ends when it has answered what it was asked.
    closing: CancellationToken,
    /// It ends now.
    broken_off: CancellationToken,
}

impl HttpServer {
    /// Handlers find the client's address as `ConnectInfo<SocketAddr>`. Clients that are cut off because
    /// they do not take their answers are counted.
    pub fn start(
        listener: TcpListener,
        router: Router,
        patience: Patience,
        cut_off: Arc<Counter>,
    ) -> Self {
        let connections = Connections {
            patience,
            cut_off,
            places: Arc::new(Semaphore::new(patience.max_connections.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            broken_off: CancellationToken::new(),
        };
        connections.tasks.spawn(connections.clone().accept(listener, router));
        Self { connections }
    }

    /// Accepts no more and lets requests under way be answered, for so long; what is left then is broken
    /// off. True when nothing was. Returns when every connection is gone, with what it held.
    pub async fn close(self, within: Duration) -> bool {
        let Connections { tasks, closing, broken_off, .. } = &self.connections;
        closing.cancel();
        tasks.close();
        let in_time = tokio::time::timeout(within, tasks.wait()).await.is_ok();
        broken_off.cancel();
        tasks.wait().await;
        in_time
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.connections.closing.cancel();
        self.connections.broken_off.cancel();
    }
}

impl Connections {
    async fn accept(self, mut listener: TcpListener, router: Router) {
        loop {
            let accepted = async {
                let place = self.places.clone().acquire_owned().await;
                // An error to accept, such as too many open files, is waited out.
                (place, Listener::accept(&mut listener).await)
            };
            let (place, (stream, peer)) = tokio::select! {
                accepted = accepted => accepted,
                () = self.closing.cancelled() => return,
            };
            let serving = self.clone().serve(stream, peer, router.clone());
            self.tasks.spawn(async move {
                serving.await;
                drop(place);
            });
        }
    }

    async fn serve(self, stream: TcpStream, peer: SocketAddr, router: Router) {
        // Tokens are small and wait for nobody.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY on a connection");
        }
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
            tracing::debug!(%error, "no bound on a connection's send buffer");
        }
        let mut builder = Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience.head)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_BUFFER);
        let stream = Impatient::new(stream, self.patience.reading);
        let service = router.map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            request
        });
        let service = TowerToHyperService::new(service);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.broken_off.cancelled() => return,
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = self.broken_off.cancelled() => return,
                }
            }
        };
        let Err(error) = ended else { return };
        if is_impatience(&error) {
            self.cut_off.increment();
        }
        // The client's doing, or the network's: nobody's to act on.
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// The one error of a connection's own that is a timeout; hyper's, of a head, are of another kind.
fn is_impatience(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut)
}
