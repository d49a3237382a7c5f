//! Which message one node is sent next. Pure: nothing is queued for a node; whenever its
//! transport has room, the most urgent message is made from the state of that moment. So a slow
//! node costs no memory, and a burst of changes reaches it as one delta.

use super::state::{Snapshot, World};
use lorikeet_contract::NodeId;
use lorikeet_contract::link::control_message::Message;
use lorikeet_contract::link::{Ack, Hello, PROTOCOL_VERSION, Revocations, Welcome};
use lorikeet_contract::rate::RateShare;

/// Snapshots in a row after which a node that still finds another digest is cut off: it computes
/// otherwise than we do, and would be sent the same state for ever.
const MAX_RESYNCS: u32 = 3;

/// What a node holds, as far as it was sent or said so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    revision: u64,
    digest: [u8; 32],
}

/// Why a node is cut off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    #[error("acknowledged revision {acked} but was sent {sent} at most")]
    Ahead { acked: u64, sent: u64 },
    #[error("its digest differs from ours even after {MAX_RESYNCS} snapshots")]
    NeverAgrees,
}

/// What an acknowledgement means for the rows kept of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acked {
    /// Applied: its rejections are of the resources of one delta.
    Delta,
    /// Applied: its rejections are all that the node has.
    Snapshot,
    /// Not applied: a snapshot follows.
    Resync,
    /// An answer to something that a snapshot has overtaken: nothing to keep.
    Stale,
}

#[derive(Debug)]
pub struct Outgoing {
    /// `None`: its id does not read, and it has no part of the rate limits.
    node: Option<NodeId>,
    welcomed: bool,
    /// The last one sent.
    rate_share: Option<RateShare>,
    lineage: u64,
    /// `None`: a snapshot is due.
    held: Option<Held>,
    /// A node whose manifest is current is told so once, by an empty delta, and acknowledges it.
    confirm: bool,
    snapshot: Option<Snapshot>,
    /// Revision of a snapshot sent whole, until the node acknowledges it.
    unacked_snapshot: Option<u64>,
    resyncs: u32,
    revoked: u64,
}

impl Outgoing {
    pub fn new(hello: &Hello, world: &World) -> Self {
        let at = world.position();
        let same_epoch = hello.cp_epoch == at.cp_epoch;
        let revision = hello.revision;
        // A node at an older revision is believed: the delta's digest proves it right or wrong.
        let held = <[u8; 32]>::try_from(hello.state_digest.as_slice())
            .ok()
            .filter(|digest| {
                same_epoch
                    && (revision < at.revision
                        || revision == at.revision && *digest == world.digest())
            })
            .map(|digest| Held { revision, digest });
        Self {
            node: hello.node_id.parse().ok(),
            welcomed: false,
            rate_share: None,
            lineage: at.lineage,
            confirm: held.is_some(),
            held,
            snapshot: None,
            unacked_snapshot: None,
            resyncs: 0,
            revoked: if same_epoch { hello.revocation_seq.min(at.revocation_seq) } else { 0 },
        }
    }

    /// The revision that the node's word at the start is good for; 0 when a snapshot is due.
    pub fn held_revision(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.revision)
    }

    pub fn next(&mut self, world: &World) -> Option<Message> {
        let at = world.position();
        if !self.welcomed {
            self.welcomed = true;
            return Some(Message::Welcome(Welcome {
                protocol_version: PROTOCOL_VERSION,
                cp_epoch: at.cp_epoch,
            }));
        }
        self.follow(at.lineage);
        self.next_revocations(world)
            .or_else(|| self.next_rate_share(world))
            .or_else(|| self.next_manifest(world))
    }

    /// After a restore of the database nothing sent before can be built upon.
    fn follow(&mut self, lineage: u64) {
        if self.lineage == lineage {
            return;
        }
        self.lineage = lineage;
        self.held = None;
        self.snapshot = None;
        self.unacked_snapshot = None;
        self.revoked = 0;
    }

    fn next_revocations(&mut self, world: &World) -> Option<Message> {
        let entries = world.revocations_after(self.revoked);
        let seq = entries.last()?.seq;
        self.revoked = seq;
        Some(Message::Revocations(Revocations { seq, entries }))
    }

    fn next_rate_share(&mut self, world: &World) -> Option<Message> {
        let share = self.node.and_then(|node| world.rate_share(node))?;
        if self.rate_share.replace(share) == Some(share) {
            return None;
        }
        Some(Message::RateShare(share.to_proto()))
    }

    fn next_manifest(&mut self, world: &World) -> Option<Message> {
        let at = world.position();
        if self.snapshot.is_none()
            && let Some(held) = &self.held
        {
            if held.revision == at.revision && !self.confirm {
                return None;
            }
            if let Some(delta) = world.delta_after(held.revision) {
                self.confirm = false;
                self.held = Some(Held { revision: at.revision, digest: world.digest() });
                return Some(Message::Delta(delta));
            }
        }
        let snapshot = self.snapshot.get_or_insert_with(|| world.snapshot());
        let chunk = snapshot.next_chunk();
        if chunk.last {
            let digest = snapshot.manifest.digest();
            self.held = Some(Held { revision: chunk.revision, digest });
            self.unacked_snapshot = Some(chunk.revision);
            self.snapshot = None;
            self.confirm = false;
        }
        Some(Message::Snapshot(chunk))
    }

    /// Takes note of an acknowledgement that was sent under `cp_epoch`.
    pub fn acknowledged(&mut self, ack: &Ack, cp_epoch: u64) -> Result<Acked, AckError> {
        // While a snapshot is under way nothing else counts. A node that asks for one need not
        // hold anything of this epoch yet.
        let Some(held) = self.held.as_ref().filter(|_| ack.cp_epoch == cp_epoch || ack.resync)
        else {
            return Ok(Acked::Stale);
        };
        if ack.revision > held.revision && !ack.resync {
            return Err(AckError::Ahead { acked: ack.revision, sent: held.revision });
        }
        let differs = ack.revision == held.revision && ack.state_digest != held.digest;
        if ack.resync || differs {
            self.resyncs += 1;
            if self.resyncs > MAX_RESYNCS {
                return Err(AckError::NeverAgrees);
            }
            self.held = None;
            self.unacked_snapshot = None;
            return Ok(Acked::Resync);
        }
        self.resyncs = 0;
        match self.unacked_snapshot {
            Some(revision) if revision <= ack.revision => {
                self.unacked_snapshot = None;
                Ok(Acked::Snapshot)
            }
            Some(_) => Ok(Acked::Stale),
            None => Ok(Acked::Delta),
        }
    }
}
