//! The HTTP server. Every connection is a task that it knows, so that when it has ended nobody speaks
//! to a customer any more and every request's account is closed.

use axum::Router;
use axum::serve::Listener;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub struct HttpServer {
    connections: Connections,
}

/// Shared by the server and the tasks of its connections.
#[derive(Clone, Default)]
struct Connections {
    tasks: TaskTracker,
    /// Nothing new: a connection ends when it has answered what it was asked.
    closing: CancellationToken,
    /// It ends now.
    broken_off: CancellationToken,
}

impl HttpServer {
    pub fn start(listener: TcpListener, router: Router) -> Self {
        let connections = Connections::default();
        connections.tasks.spawn(connections.clone().accept(listener, router));
        Self { connections }
    }

    /// Accepts no more and lets requests under way be answered, for so long; what is left then is broken
    /// off. True when nothing was. Returns when every connection is gone, with what it held.
    pub async fn close(self, within: Duration) -> bool {
        let Connections { tasks, closing, broken_off } = self.connections;
        closing.cancel();
        tasks.close();
        let in_time = tokio::time::timeout(within, tasks.wait()).await.is_ok();
        broken_off.cancel();
        tasks.wait().await;
        in_time
    }
}

impl Connections {
    async fn accept(self, mut listener: TcpListener, router: Router) {
        loop {
            // An error to accept, such as too many open files, is waited out.
            let (stream, _) = tokio::select! {
                accepted = Listener::accept(&mut listener) => accepted,
                () = self.closing.cancelled() => return,
            };
            self.tasks.spawn(self.clone().serve(stream, router.clone()));
        }
    }

    async fn serve(self, stream: TcpStream, router: Router) {
        // Tokens are small and wait for nobody.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY on a connection");
        }
        let builder = Builder::new(self.clone());
        let service = TowerToHyperService::new(router);
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
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended badly");
        }
    }
}

/// Runs what HTTP/2 does beside a connection's own task.
impl<F> Executor<F> for Connections
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        let broken_off = self.broken_off.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                _ = task => {}
                () = broken_off.cancelled() => {}
            }
        });
    }
}
