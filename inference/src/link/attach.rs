//! The stream to the control plane: dialled again whenever it ends.

use super::backoff::Backoff;
use super::keeper::Keeper;
use super::manifest::Manifest;
use super::residency;
use super::snapshot::SnapshotAssembly;
use super::uplink::Uplink;
use crate::adapters::ResidencyReport;
use crate::durable::unix_ms;
use crate::engine::EngineHandle;
use lorikeet_contract::BaseModelSpec;
use lorikeet_contract::link::control_message::Message as FromControl;
use lorikeet_contract::link::node_message::Message as FromNode;
use lorikeet_contract::link::{
    HEARTBEAT, Heartbeat, Hello, NodeMessage, PROTOCOL_VERSION, RevocationAck, SILENCE,
    is_compatible,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Messages on their way out; while it is full the node takes nothing in, and the stream ends when
/// that lasts.
const OUTGOING: usize = 16;

/// A stream that held this long makes the next failure a first one.
const STEADY: Duration = Duration::from_secs(5);

/// How this node presents itself.
#[derive(Debug, Clone)]
pub struct Presentation {
    pub name: String,
    pub base: BaseModelSpec,
    /// Where customers reach this node, ends in /v1.
    pub api_base_url: String,
    /// cpu, cuda or sim.
    pub backend: &'static str,
}

pub struct Link {
    pub uplink: Uplink,
    pub presentation: Presentation,
    pub keeper: Keeper,
    pub manifest: Arc<Manifest>,
    pub engine: EngineHandle,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Detached {
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error("{0}")]
    Unanswered(String),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane was silent for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the control plane takes no messages")]
    NotDraining,
    #[error(
        "the control plane speaks protocol version {0}, this node {PROTOCOL_VERSION}: upgrade the older one"
    )]
    Protocol(u32),
}

impl Link {
    /// Follows the control plane until `stop`. The node serves what it holds meanwhile, with or
    /// without a stream.
    pub async fn run(mut self, stop: CancellationToken) {
        self.keeper.announce().await;
        let mut backoff = Backoff::default();
        loop {
            let begun = std::time::Instant::now();
            let detached = tokio::select! {
                () = stop.cancelled() => return,
                detached = self.attach() => detached,
            };
            if begun.elapsed() > STEADY {
                backoff.reset();
            }
            let Err(reason) = detached;
            if backoff.is_fresh() {
                tracing::warn!(%reason, "detached from the control plane, serving on and dialling again");
            } else {
                tracing::debug!(%reason, "still detached from the control plane");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }

    async fn attach(&mut self) -> Result<std::convert::Infallible, Detached> {
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        send(&outgoing, FromNode::Hello(self.hello())).await?;
        let mut client = self.uplink.client();
        let attached = client.attach(ReceiverStream::new(messages));
        let opened = tokio::time::timeout(SILENCE, attached).await.map_err(|_| Detached::Silent)?;
        let unanswered = |status| Detached::Unanswered(self.uplink.explain(&status));
        let mut incoming = opened.map_err(unanswered)?.into_inner();

        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut silent_since = tokio::time::Instant::now();
        let mut snapshot = SnapshotAssembly::default();
        let mut reported = Arc::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(silent_since + SILENCE) => return Err(Detached::Silent),
                _ = heartbeat.tick() => self.beat(&outgoing, &mut reported).await?,
                received = incoming.message() => {
                    let message = received?.ok_or(Detached::Closed)?.message;
                    self.manifest.note_contact();
                    silent_since = tokio::time::Instant::now();
                    // None: a kind of message that a newer control plane knows.
                    if let Some(message) = message
                        && let Some(answer) = self.take(message, &mut snapshot).await?
                    {
                        send(&outgoing, answer).await?;
                    }
                }
            }
        }
    }

    async fn take(
        &mut self,
        message: FromControl,
        snapshot: &mut SnapshotAssembly,
    ) -> Result<Option<FromNode>, Detached> {
        match message {
            FromControl::Welcome(welcome) if !is_compatible(welcome.protocol_version) => {
                Err(Detached::Protocol(welcome.protocol_version))
            }
            FromControl::Welcome(welcome) => {
                tracing::info!(cp_epoch = welcome.cp_epoch, "attached to the control plane");
                Ok(None)
            }
            FromControl::Heartbeat(_) => Ok(None),
            FromControl::Revocations(revocations) => {
                self.keeper.revoke(&revocations).await;
                Ok(Some(FromNode::RevocationAck(RevocationAck { seq: revocations.seq })))
            }
            FromControl::RateShare(share) => {
                self.keeper.share_rates(&share).await;
                Ok(None)
            }
            FromControl::Delta(delta) => Ok(Some(FromNode::Ack(self.keeper.apply(delta).await))),
            FromControl::Snapshot(chunk) => match snapshot.push(chunk) {
                Ok(None) => Ok(None),
                Ok(Some(state)) => Ok(Some(FromNode::Ack(self.keeper.replace(state).await))),
                Err(error) => {
                    tracing::warn!(%error, "asking the control plane for the manifest again");
                    Ok(Some(FromNode::Ack(self.keeper.resync())))
                }
            },
        }
    }

    /// Says that the node lives, and where its adapters are when that has changed.
    async fn beat(
        &self,
        outgoing: &mpsc::Sender<NodeMessage>,
        reported: &mut Arc<ResidencyReport>,
    ) -> Result<(), Detached> {
        let unix_ms = u64::try_from(unix_ms()).unwrap_or_default();
        send(outgoing, FromNode::Heartbeat(Heartbeat { unix_ms })).await?;
        let residency = self.engine.stats().residency;
        if residency == *reported {
            return Ok(());
        }
        *reported = residency;
        for part in residency::to_messages(reported) {
            send(outgoing, FromNode::Residency(part)).await?;
        }
        Ok(())
    }

    fn hello(&self) -> Hello {
        let state = self.keeper.state();
        // Empty while none is held.
        let state_digest = match state.cp_epoch {
            0 => Vec::new(),
            _ => state.digest().to_vec(),
        };
        Hello {
            protocol_version: PROTOCOL_VERSION,
            node_id: self.uplink.node_id().to_string(),
            name: self.presentation.name.clone(),
            cp_epoch: state.cp_epoch,
            revision: state.revision,
            state_digest,
            base_model: Some(self.presentation.base.to_proto()),
            api_base_url: self.presentation.api_base_url.clone(),
            backend: self.presentation.backend.to_owned(),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            revocation_seq: self.keeper.revocation_seq(),
        }
    }
}

async fn send(outgoing: &mpsc::Sender<NodeMessage>, message: FromNode) -> Result<(), Detached> {
    let message = NodeMessage { message: Some(message) };
    let sent = tokio::time::timeout(SILENCE, outgoing.send(message)).await;
    sent.map_err(|_| Detached::NotDraining)?.map_err(|_| Detached::Closed)
}
