//! A control plane that does as a test tells it: it speaks the real protocol over a real socket.

use lorikeet_contract::link::control_message::Message as ToNode;
use lorikeet_contract::link::link_server::{Link, LinkServer};
use lorikeet_contract::link::node_message::Message as FromNode;
use lorikeet_contract::link::{
    Ack, AdapterResidency, ControlMessage, Delta, FinishReason, Hello, NodeMessage, Resource,
    ResourceRef, Revocation, Revocations, SnapshotChunk, USAGE_CURSOR_METADATA, UsageAck,
    UsageBatch, UsageKind, UsageRecord, Welcome, revocation::Target,
};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::usage::{CHAIN_START, chain};
use prost::Message;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

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

/// What nodes have said.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub hellos: Vec<Hello>,
    pub acks: Vec<Ack>,
    pub revocation_acks: Vec<u64>,
    pub bearers: Vec<String>,
    /// Of the last whole report.
    pub residency: Vec<AdapterResidency>,
    /// By log id.
    pub logs: BTreeMap<String, Log>,
}

/// Records of one log in their order, repeats dropped by position.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub records: Vec<UsageRecord>,
    chain: [u8; 32],
}

impl Seen {
    pub fn usage(&self) -> impl Iterator<Item = &UsageRecord> {
        self.logs.values().flat_map(|log| &log.records)
    }

    pub fn finals(&self) -> Vec<UsageRecord> {
        self.usage().filter(|r| r.kind() == UsageKind::Final).cloned().collect()
    }

    pub fn finals_with(&self, reason: FinishReason) -> Vec<UsageRecord> {
        self.finals().into_iter().filter(|r| r.finish_reason() == reason).collect()
    }
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

async fn send_all(streams: &[mpsc::Sender<Result<ControlMessage, Status>>], message: ToNode) {
    for stream in streams {
        let _ = stream.send(Ok(ControlMessage { message: Some(message.clone()) })).await;
    }
}

/// The whole state in chunks of two resources.
pub fn snapshot(state: &ManifestState) -> Vec<ToNode> {
    let resources: Vec<Resource> = state.iter().map(owned).collect();
    let parts: Vec<Vec<Resource>> = match resources.is_empty() {
        true => vec![Vec::new()],
        false => resources.chunks(2).map(<[Resource]>::to_vec).collect(),
    };
    let last = parts.len() - 1;
    let chunk = |(index, resources)| {
        ToNode::Snapshot(SnapshotChunk {
            cp_epoch: state.cp_epoch,
            revision: state.revision,
            index: index as u32,
            last: index == last,
            state_digest: state.digest().to_vec(),
            resources,
        })
    };
    parts.into_iter().enumerate().map(chunk).collect()
}

struct Service {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<()>,
}

impl Service {
    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.world.lock().expect("no test panics with the lock").seen);
        self.changed.send_replace(());
    }
}

#[tonic::async_trait]
impl Link for Service {
    type AttachStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let bearer = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let bearer = bearer.unwrap_or_default().to_owned();
        let mut inbound = request.into_inner();
        let Some(FromNode::Hello(hello)) = inbound.message().await?.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("the first message is Hello"));
        };
        let (sender, receiver) = mpsc::channel(64);
        let manifest = {
            let mut world = self.world.lock().expect("no test panics with the lock");
            world.streams.push(sender.clone());
            world.manifest.clone()
        };
        let current = hello.cp_epoch == EPOCH && hello.state_digest == manifest.digest();
        self.note(|seen| {
            seen.bearers.push(bearer);
            seen.hellos.push(hello);
        });
        let (world, changed) = (self.world.clone(), self.changed.clone());
        let service = Service { world, changed };
        tokio::spawn(async move {
            let streams = [sender];
            let welcome = Welcome { protocol_version: 1, cp_epoch: EPOCH };
            send_all(&streams, ToNode::Welcome(welcome)).await;
            if !current {
                for chunk in snapshot(&manifest) {
                    send_all(&streams, chunk).await;
                }
            }
            let mut residency = Vec::new();
            while let Ok(Some(message)) = inbound.message().await {
                match message.message {
                    Some(FromNode::Ack(ack)) => {
                        let resync = ack.resync;
                        service.note(|seen| seen.acks.push(ack));
                        if resync {
                            let manifest = service.world.lock().expect("a lock").manifest.clone();
                            for chunk in snapshot(&manifest) {
                                send_all(&streams, chunk).await;
                            }
                        }
                    }
                    Some(FromNode::RevocationAck(ack)) => {
                        service.note(|seen| seen.revocation_acks.push(ack.seq));
                    }
                    Some(FromNode::Residency(report)) => {
                        residency.extend(report.adapters);
                        if !report.more {
                            let whole = std::mem::take(&mut residency);
                            service.note(|seen| seen.residency = whole);
                        }
                    }
                    _ => {}
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// By position, with the chain checked, as the real ingest does.
    async fn ship_usage(&self, request: Request<UsageBatch>) -> Result<Response<UsageAck>, Status> {
        let batch = request.into_inner();
        {
            let world = self.world.lock().expect("a lock");
            if world.usage_away {
                return Err(Status::unavailable("the database does not answer"));
            }
            if !world.quarantine.is_empty() {
                let quarantine_reason = world.quarantine.clone();
                return Ok(Response::new(UsageAck { cursor: 0, quarantine_reason }));
            }
            let cursor =
                world.seen.logs.get(&batch.log_id).map_or(0, |log| log.records.len() as u64);
            if batch.first_seq > cursor + 1 {
                let mut status = Status::failed_precondition("a gap");
                status.metadata_mut().insert(USAGE_CURSOR_METADATA, cursor.into());
                return Err(status);
            }
        }
        let mut cursor = 0;
        self.note(|seen| {
            let log = seen.logs.entry(batch.log_id).or_default();
            for (payload, seq) in batch.records.iter().zip(batch.first_seq..) {
                let record = UsageRecord::decode(&payload[..]).expect("a record");
                assert_eq!(record.seq, seq, "records are consecutive");
                let known = log.records.len() as u64;
                if seq == known + 1 {
                    let first = seq == batch.first_seq;
                    assert!(!first || batch.prev_hash == log.chain, "the chain goes on");
                    log.chain = chain(&log.chain, payload);
                    log.records.push(record);
                }
            }
            cursor = log.records.len() as u64;
        });
        Ok(Response::new(UsageAck { cursor, quarantine_reason: String::new() }))
    }
}
