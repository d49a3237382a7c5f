//! A control plane that does as a test tells it: it speaks the real protocol over a real socket.

mod seen;
mod service;

use lorikeet_contract::link::control_message::Message as ToNode;
use lorikeet_contract::link::link_server::LinkServer;
use lorikeet_contract::link::{
    Ack, ControlMessage, Delta, Resource, ResourceRef, Revocation, Revocations, revocation::Target,
};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::usage::{CHAIN_START, chain};
use prost::Message;
use service::{Service, send_all};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;

pub use seen::Seen;
pub use service::snapshot;

pub const EPOCH: u64 = 7;

/// How long a test waits for what must happen.
pub const SOON: Duration = Duration::from_secs(60);

#[derive(Default)]
struct World {
    manifest: ManifestState,
    streams: Vec<mpsc::Sender<Result<ControlMessage, Status>>>,
    revocation_seq: u64,
    seen: Seen,
    /// While set, shipped usage is refused.
    usage_away: bool,
    quarantine: String,
}

pub struct ControlPlane {
    pub address: SocketAddr,
    world: Arc<Mutex<World>>,
    changed: watch::Sender<()>,
    /// Its own, so that it can be killed with all its connections.
    runtime: Option<Runtime>,
}

impl ControlPlane {
    pub fn start(resources: Vec<Resource>) -> Self {
        let manifest = ManifestState::from_resources(EPOCH, 1, resources);
        let world = Arc::new(Mutex::new(World { manifest, ..World::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self::listen(listener, world)
    }

    fn listen(listener: TcpListener, world: Arc<Mutex<World>>) -> Self {
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("an address");
        let (changed, _) = watch::channel(());
        let service = LinkServer::new(Service { world: world.clone(), changed: changed.clone() });
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("it runs");
        });
        Self { address, world, changed, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panics with the lock")
    }

    pub fn seen(&self) -> Seen {
        self.world().seen.clone()
    }

    /// Waits until what nodes have said satisfies `condition`.
    pub async fn until(&self, what: &str, condition: impl Fn(&Seen) -> bool) -> Seen {
        let mut changed = self.changed.subscribe();
        let satisfied = async {
            loop {
                changed.borrow_and_update();
                let seen = self.seen();
                if condition(&seen) {
                    return seen;
                }
                changed.changed().await.expect("the control plane lives");
            }
        };
        match tokio::time::timeout(SOON, satisfied).await {
            Ok(seen) => seen,
            Err(_) => panic!("not soon enough: {what}; seen {:#?}", self.seen()),
        }
    }

    pub fn revision(&self) -> u64 {
        self.world().manifest.revision
    }

    /// Waits until `nodes` nodes have acknowledged the newest revision.
    pub async fn acknowledged(&self, nodes: usize) -> Seen {
        let revision = self.revision();
        let digest = self.world().manifest.digest().to_vec();
        self.until("the newest revision is acknowledged", |seen| {
            let current = |ack: &&Ack| ack.revision == revision && ack.state_digest == digest;
            seen.acks.iter().filter(current).count() >= nodes
        })
        .await
    }

    /// Sends a change to every node. `spoil` may break the delta before it goes out.
    pub async fn change(
        &self,
        upserts: Vec<Resource>,
        tombstones: Vec<ResourceRef>,
        spoil: impl FnOnce(&mut Delta),
    ) {
        let (mut delta, streams) = {
            let mut world = self.world();
            let before = &world.manifest;
            let gone = |kind: i32, id: &str| {
                tombstones.iter().any(|t| t.kind == kind && t.id == id)
                    || upserts.iter().any(|u| u.kind == kind && u.id == id)
            };
            let kept = before.iter().filter(|(kind, id, _)| !gone(*kind, id)).map(owned);
            let resources: Vec<Resource> = kept.chain(upserts.iter().cloned()).collect();
            let from_revision = before.revision;
            let after = ManifestState::from_resources(EPOCH, from_revision + 1, resources);
            let delta = Delta {
                cp_epoch: EPOCH,
                from_revision,
                to_revision: after.revision,
                state_digest: after.digest().to_vec(),
                upserts,
                tombstones,
            };
            world.manifest = after;
            (delta, world.streams.clone())
        };
        spoil(&mut delta);
        send_all(&streams, ToNode::Delta(delta)).await;
    }

    pub async fn publish(&self, upserts: Vec<Resource>) {
        self.change(upserts, Vec::new(), |_| {}).await;
    }

    pub async fn revoke(&self, target: Target) {
        let (message, streams) = {
            let mut world = self.world();
            world.revocation_seq += 1;
            let seq = world.revocation_seq;
            let entries = vec![Revocation { seq, target: Some(target) }];
            (Revocations { seq, entries }, world.streams.clone())
        };
        send_all(&streams, ToNode::Revocations(message)).await;
    }

    /// Sends messages as they are.
    pub async fn say(&self, messages: Vec<ToNode>) {
        let streams = self.world().streams.clone();
        for message in messages {
            send_all(&streams, message).await;
        }
    }

    pub fn refuse_usage(&self, refuse: bool) {
        self.world().usage_away = refuse;
    }

    /// Its database is put back to a time when it had only this many records of each log.
    pub fn restore_usage(&self, records: usize) {
        for log in self.world().seen.logs.values_mut() {
            log.records.truncate(records);
            let payloads = log.records.iter().map(Message::encode_to_vec);
            log.chain = payloads.fold(CHAIN_START, |before, payload| chain(&before, &payload));
        }
    }

    pub fn quarantine_usage(&self, reason: &str) {
        self.world().quarantine = reason.into();
    }

    /// Goes away, as after kill -9: sockets close, nobody is told.
    pub fn kill(mut self) -> Killed {
        self.end();
        self.world().streams.clear();
        Killed { address: self.address, world: self.world.clone() }
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub struct Killed {
    address: SocketAddr,
    world: Arc<Mutex<World>>,
}

impl Killed {
    /// Comes back at the same address, with what it knew.
    pub async fn restart(self) -> ControlPlane {
        loop {
            if let Ok(listener) = TcpListener::bind(self.address) {
                return ControlPlane::listen(listener, self.world);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.end();
    }
}

fn owned((kind, id, payload): (i32, &str, &[u8])) -> Resource {
    Resource { kind, id: id.to_owned(), payload: payload.to_vec() }
}
