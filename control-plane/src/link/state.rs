//! What this process knows of the manifest, the deny-set and the connected nodes: the database's rows, in memory, in
//! the form from which deltas and snapshots are cut. Pure; `feed` keeps it up to date.

use lorikeet_contract::NodeId;
use lorikeet_contract::link::{
    Delta, Resource, ResourceRef, Revocation, SNAPSHOT_CHUNK_BYTES, SnapshotChunk,
};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::rate::RateShare;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Most entries in one `Revocations` message.
const MAX_REVOCATIONS: usize = 1000;

/// Protobuf's tags and lengths around one resource, generously.
const RESOURCE_OVERHEAD: usize = 32;

type ResourceKey = (i32, String);

/// The last change of one resource, as the database holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub kind: i32,
    pub id: String,
    pub revision: u64,
    /// `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
}

/// How far a [`World`] has come. Two positions are comparable only within one lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Counts how often the database went back (a restore) and everything was read again.
    pub lineage: u64,
    pub cp_epoch: u64,
    pub revision: u64,
    pub revocation_seq: u64,
}

/// Manifest, change log and deny-set at one [`Position`].
#[derive(Debug, Default)]
pub struct World {
    position: Position,
    /// Shared with snapshots under way: a change copies the map only while there is one.
    manifest: Arc<ManifestState>,
    /// Every resource once, tombstones too, by the revision that changed it last.
    by_revision: BTreeMap<u64, ResourceKey>,
    revision_of: BTreeMap<ResourceKey, u64>,
    revocations: BTreeMap<u64, Revocation>,
    /// The connected nodes, in the order of their ids.
    connected: Vec<NodeId>,
}

impl World {
    pub fn position(&self) -> Position {
        self.position
    }

    pub fn digest(&self) -> [u8; 32] {
        self.manifest.digest()
    }

    /// Forgets everything and begins the next lineage.
    pub fn restart(&mut self, cp_epoch: u64) {
        let lineage = self.position.lineage + 1;
        let manifest = Arc::new(ManifestState::from_resources(cp_epoch, 0, []));
        let connected = std::mem::take(&mut self.connected);
        *self = Self { manifest, connected, ..Self::default() };
        self.position = Position { lineage, cp_epoch, ..Position::default() };
    }

    /// Takes the changes after the own position up to `revision`, in any order.
    pub fn advance(&mut self, revision: u64, changes: Vec<Change>) {
        let manifest = Arc::make_mut(&mut self.manifest);
        for change in changes {
            let key = (change.kind, change.id);
            match change.payload {
                Some(payload) => manifest.upsert(key.0, key.1.clone(), payload.into()),
                None => manifest.remove(key.0, &key.1),
            }
            if let Some(before) = self.revision_of.insert(key.clone(), change.revision) {
                self.by_revision.remove(&before);
            }
            self.by_revision.insert(change.revision, key);
        }
        manifest.revision = revision;
        self.position.revision = revision;
    }

    pub fn revoke(&mut self, seq: u64, entries: Vec<Revocation>) {
        self.revocations.extend(entries.into_iter().map(|r| (r.seq, r)));
        self.position.revocation_seq = seq;
    }

    pub fn connected(&self) -> &[NodeId] {
        &self.connected
    }

    /// `nodes` in the order of their ids.
    pub fn set_connected(&mut self, nodes: Vec<NodeId>) {
        self.connected = nodes;
    }

    /// A node's part of every rate limit; `None` while it is not known to be connected.
    pub fn rate_share(&self, node: NodeId) -> Option<RateShare> {
        let position = self.connected.binary_search(&node).ok()?;
        let (nodes, position) = (self.connected.len().try_into(), position.try_into());
        RateShare::new(nodes.ok()?, position.ok()?).ok()
    }

    /// The deny-set after `seq`, oldest first, at most one message full.
    pub fn revocations_after(&self, seq: u64) -> Vec<Revocation> {
        let after = (Bound::Excluded(seq), Bound::Unbounded);
        self.revocations.range(after).take(MAX_REVOCATIONS).map(|(_, r)| r.clone()).collect()
    }

    /// What changed after `revision`; `None` when that is more than a message may hold, and a
    /// snapshot, which comes in chunks, is the better answer.
    pub fn delta_after(&self, revision: u64) -> Option<Delta> {
        let mut delta = Delta {
            cp_epoch: self.position.cp_epoch,
            from_revision: revision,
            to_revision: self.position.revision,
            state_digest: self.digest().to_vec(),
            ..Delta::default()
        };
        let mut bytes = 0;
        for (_, (kind, id)) in self.by_revision.range((Bound::Excluded(revision), Bound::Unbounded))
        {
            let payload = self.manifest.get_raw(*kind, id);
            bytes += size(id, payload.unwrap_or_default());
            if bytes > SNAPSHOT_CHUNK_BYTES {
                return None;
            }
            match payload {
                Some(payload) => delta.upserts.push(resource(*kind, id, payload)),
                None => delta.tombstones.push(ResourceRef { kind: *kind, id: id.clone() }),
            }
        }
        Some(delta)
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot { manifest: self.manifest.clone(), after: None, index: 0 }
    }
}

/// A snapshot being sent: one state, cut into chunks as they are asked for.
#[derive(Debug)]
pub struct Snapshot {
    pub manifest: Arc<ManifestState>,
    after: Option<ResourceKey>,
    index: u32,
}

impl Snapshot {
    /// The next chunk. Not to be called after the one that says `last`.
    pub fn next_chunk(&mut self) -> SnapshotChunk {
        let mut chunk = SnapshotChunk {
            cp_epoch: self.manifest.cp_epoch,
            revision: self.manifest.revision,
            index: self.index,
            last: true,
            state_digest: self.manifest.digest().to_vec(),
            resources: Vec::new(),
        };
        let mut bytes = 0;
        let mut last_key = None;
        for (key, payload) in self.manifest.iter_after(self.after.as_ref()) {
            bytes += size(&key.1, payload);
            // One resource larger than a chunk travels alone.
            if bytes > SNAPSHOT_CHUNK_BYTES && !chunk.resources.is_empty() {
                chunk.last = false;
                break;
            }
            chunk.resources.push(resource(key.0, &key.1, payload));
            last_key = Some(key);
        }
        self.after = last_key.cloned();
        self.index += 1;
        chunk
    }
}

fn resource(kind: i32, id: &str, payload: &[u8]) -> Resource {
    Resource { kind, id: id.to_owned(), payload: payload.to_vec() }
}

fn size(id: &str, payload: &[u8]) -> usize {
    id.len() + payload.len() + RESOURCE_OVERHEAD
}
