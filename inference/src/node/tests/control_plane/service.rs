//! The protocol's other side.

use super::{EPOCH, Seen, World, owned};
use lorikeet_contract::link::control_message::Message as ToNode;
use lorikeet_contract::link::link_server::Link;
use lorikeet_contract::link::node_message::Message as FromNode;
use lorikeet_contract::link::{
    ControlMessage, NodeMessage, Resource, SnapshotChunk, USAGE_CURSOR_METADATA, UsageAck,
    UsageBatch, UsageRecord, Welcome,
};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::usage::chain;
use prost::Message;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub async fn send_all(streams: &[mpsc::Sender<Result<ControlMessage, Status>>], message: ToNode) {
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

pub struct Service {
    pub(super) world: Arc<Mutex<World>>,
    pub(super) changed: watch::Sender<()>,
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
