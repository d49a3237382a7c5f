//! Nodes that follow the link's protocol to the letter or, where a test wants it, break it.

use crate::plane::{LinkProcess, signing_key};
use lorikeet_contract::NodeId;
use lorikeet_contract::link::control_message::Message;
use lorikeet_contract::link::{
    self, Ack, BaseModel, ControlMessage, Hello, NodeMessage, Rejection, Resource, RevocationAck,
    node_message,
};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::rate::RateShare;
use lorikeet_control_plane::link::issue_node_token;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

pub const PATIENCE: Duration = Duration::from_secs(15);

pub fn token(node: NodeId) -> String {
    issue_node_token(signing_key(), node, "a node", Duration::from_secs(600)).unwrap()
}

pub fn authorized<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

pub fn base_model() -> BaseModel {
    BaseModel {
        id: "smollm2-135m-instruct".into(),
        weights_digest: vec![7; 32],
        architecture: "llama".into(),
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        vocab_size: 49152,
        context_length: 8192,
    }
}

/// A node's memory. It survives its streams, as a node's disk does.
pub struct Node {
    pub id: NodeId,
    pub manifest: ManifestState,
    pub revocation_seq: u64,
    /// Resources that it refuses, and why.
    pub refuses: HashMap<String, String>,
    pub snapshots: u32,
    pub rate_share: Option<RateShare>,
    draft: Vec<Resource>,
}

impl Node {
    pub fn new() -> Self {
        Self::with_id(NodeId::new())
    }

    /// A node that has lost its disk, or a second process of it.
    pub fn with_id(id: NodeId) -> Self {
        Self {
            id,
            manifest: ManifestState::default(),
            revocation_seq: 0,
            refuses: HashMap::new(),
            snapshots: 0,
            rate_share: None,
            draft: Vec::new(),
        }
    }

    pub fn hello(&self) -> Hello {
        Hello {
            protocol_version: link::PROTOCOL_VERSION,
            node_id: self.id.to_string(),
            name: "a node".into(),
            cp_epoch: self.manifest.cp_epoch,
            revision: self.manifest.revision,
            state_digest: self.manifest.digest().to_vec(),
            base_model: Some(base_model()),
            api_base_url: "http://127.0.0.1:7710/v1".into(),
            backend: "sim".into(),
            software_version: "test".into(),
            revocation_seq: self.revocation_seq,
        }
    }

    pub async fn attach(self, process: &LinkProcess) -> Attached {
        let hello = self.hello();
        let token = token(self.id);
        let (outbound, inbound) = dial(process, hello, &token).await.expect("attaches");
        Attached { node: self, outbound, inbound }
    }
}

/// Opens a stream that begins with `hello`.
pub async fn dial(
    process: &LinkProcess,
    hello: Hello,
    token: &str,
) -> Result<(mpsc::Sender<NodeMessage>, Streaming<ControlMessage>), Status> {
    let (outbound, messages) = mpsc::channel(64);
    let first = NodeMessage { message: Some(node_message::Message::Hello(hello)) };
    outbound.send(first).await.unwrap();
    let request = authorized(ReceiverStream::new(messages), token);
    let inbound = process.client().await.attach(request).await?.into_inner();
    Ok((outbound, inbound))
}

/// A node with a stream.
pub struct Attached {
    pub node: Node,
    outbound: mpsc::Sender<NodeMessage>,
    inbound: Streaming<ControlMessage>,
}

impl Attached {
    /// The next message but for rate shares, which come when other nodes come and go; `None` when
    /// the stream has ended.
    pub async fn receive(&mut self) -> Option<Message> {
        loop {
            match self.receive_any().await? {
                share @ Message::RateShare(_) => self.apply(share).await,
                other => return Some(other),
            }
        }
    }

    async fn receive_any(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(PATIENCE, self.inbound.message()).await;
        match next.expect("a message or the end within the time a heartbeat takes") {
            Ok(message) => message.and_then(|m| m.message),
            Err(_) => None,
        }
    }

    pub async fn say(&self, message: node_message::Message) {
        self.outbound.send(NodeMessage { message: Some(message) }).await.unwrap();
    }

    /// Applies a message as a node does, and acknowledges it.
    pub async fn apply(&mut self, message: Message) {
        let node = &mut self.node;
        let (touched, resync) = match message {
            Message::Delta(delta) => match node.manifest.applied(&delta) {
                Ok(next) => {
                    node.manifest = next;
                    (delta.upserts, false)
                }
                Err(_) => (vec![], true),
            },
            Message::Snapshot(chunk) => {
                node.draft.extend(chunk.resources);
                if !chunk.last {
                    return;
                }
                node.snapshots += 1;
                let all = std::mem::take(&mut node.draft);
                node.manifest =
                    ManifestState::from_resources(chunk.cp_epoch, chunk.revision, all.clone());
                (all, false)
            }
            Message::Revocations(revocations) => {
                node.revocation_seq = revocations.seq;
                let ack = RevocationAck { seq: revocations.seq };
                return self.say(node_message::Message::RevocationAck(ack)).await;
            }
            Message::RateShare(share) => {
                node.rate_share = RateShare::try_from(&share).ok();
                return;
            }
            Message::Welcome(_) | Message::Heartbeat(_) => return,
        };
        let rejected = touched.iter().filter_map(|r| {
            let reason = node.refuses.get(&r.id)?.clone();
            Some(Rejection { kind: r.kind, id: r.id.clone(), reason })
        });
        let ack = Ack {
            cp_epoch: node.manifest.cp_epoch,
            revision: node.manifest.revision,
            state_digest: node.manifest.digest().to_vec(),
            rejected: rejected.collect(),
            resync,
        };
        self.say(node_message::Message::Ack(ack)).await;
    }

    /// Follows the stream until the node is as wanted.
    pub async fn follow(&mut self, wanted: impl Fn(&Node) -> bool) {
        while !wanted(&self.node) {
            let message = self.receive_any().await.expect("the stream goes on");
            self.apply(message).await;
        }
    }

    pub async fn follow_to(&mut self, revision: u64) {
        self.follow(|node| node.manifest.revision >= revision).await;
    }

    /// Follows the stream in the background until it ends; then gives the node back.
    pub fn live(mut self) -> JoinHandle<Node> {
        tokio::spawn(async move {
            while let Some(message) = self.receive().await {
                self.apply(message).await;
            }
            self.node
        })
    }

    /// Ends the stream from the node's side.
    pub fn hang_up(self) -> Node {
        self.node
    }
}
