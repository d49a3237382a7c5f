//! The manifest on the node's disk, from which it serves after a restart without the control plane.
//!
//! ```text
//! DIR/snapshot   one frame: a SnapshotChunk with the whole state
//! DIR/deltas     frames: each Delta since, in order; a new snapshot takes them in
//! frame          length u64 | crc32 u32 | protobuf        (little endian)
//! ```
//! What does not read is dropped and logged: the control plane sends it again.

use super::snapshot::SnapshotAssembly;
use crate::durable;
use lorikeet_contract::link::{Delta, Resource, SnapshotChunk};
use lorikeet_contract::manifest::ManifestState;
use prost::Message;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Deltas are folded into a snapshot when they are larger than it and than this.
const COMPACT_BYTES: u64 = 1 << 20;

pub struct ManifestStore {
    dir: PathBuf,
    deltas: File,
    delta_bytes: u64,
    snapshot_bytes: u64,
    /// The deltas on the disk have a gap: only a snapshot can be written.
    broken: bool,
}

impl ManifestStore {
    /// The store, and the newest state that it holds; the empty state of epoch 0 when there is none.
    pub fn open(dir: &Path) -> io::Result<(Self, ManifestState)> {
        fs::create_dir_all(dir)?;
        let snapshot = read_or_empty(&dir.join("snapshot"))?;
        let deltas = read_or_empty(&dir.join("deltas"))?;
        let mut state = snapshot_state(&snapshot).unwrap_or_default();
        let mut whole = 0;
        while let Some((message, len)) = read_frame(&deltas[whole..]) {
            let Some(next) = follow(&state, message) else { break };
            state = next;
            whole += len;
        }
        if whole < deltas.len() {
            tracing::warn!(
                dir = %dir.display(), offset = whole, revision = state.revision,
                "the end of the kept manifest does not read and is dropped"
            );
        }
        let file = OpenOptions::new().create(true).append(true).open(dir.join("deltas"))?;
        file.set_len(whole as u64)?;
        let store = Self {
            dir: dir.to_owned(),
            deltas: file,
            delta_bytes: whole as u64,
            snapshot_bytes: snapshot.len() as u64,
            broken: false,
        };
        Ok((store, state))
    }

    /// Makes `delta`, which led to `state`, durable.
    pub fn append(&mut self, delta: &Delta, state: &ManifestState) -> io::Result<()> {
        if self.broken || self.delta_bytes > self.snapshot_bytes.max(COMPACT_BYTES) {
            return self.replace(state);
        }
        let frame = frame(&delta.encode_to_vec());
        let written = self.deltas.write_all(&frame).and_then(|()| self.deltas.sync_data());
        self.broken = written.is_err();
        self.delta_bytes += frame.len() as u64;
        written
    }

    /// Replaces everything by `state`. After a crash in between, deltas that the snapshot holds already
    /// are skipped.
    pub fn replace(&mut self, state: &ManifestState) -> io::Result<()> {
        self.broken = true;
        let resources = state.iter().map(|(kind, id, payload)| Resource {
            kind,
            id: id.to_owned(),
            payload: payload.to_vec(),
        });
        let chunk = SnapshotChunk {
            cp_epoch: state.cp_epoch,
            revision: state.revision,
            index: 0,
            last: true,
            state_digest: state.digest().to_vec(),
            resources: resources.collect(),
        };
        let frame = frame(&chunk.encode_to_vec());
        durable::replace(&self.dir.join("snapshot"), &frame)?;
        self.deltas.set_len(0)?;
        self.deltas.sync_data()?;
        self.snapshot_bytes = frame.len() as u64;
        self.delta_bytes = 0;
        self.broken = false;
        Ok(())
    }
}

fn snapshot_state(bytes: &[u8]) -> Option<ManifestState> {
    if bytes.is_empty() {
        return None;
    }
    let state = read_frame(bytes)
        .and_then(|(message, _)| SnapshotChunk::decode(message).ok())
        .and_then(|chunk| SnapshotAssembly::default().push(chunk).ok().flatten());
    if state.is_none() {
        tracing::error!(
            "the kept manifest does not read: nothing is served before the control plane sends it again"
        );
    }
    state
}

/// The state after one kept delta; None when it does not follow.
fn follow(state: &ManifestState, message: &[u8]) -> Option<ManifestState> {
    let delta = Delta::decode(message).ok()?;
    if delta.cp_epoch != state.cp_epoch || delta.to_revision <= state.revision {
        return Some(state.clone());
    }
    state.applied(&delta).ok()
}

fn read_or_empty(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

fn frame(message: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(12 + message.len());
    frame.extend_from_slice(&(message.len() as u64).to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(message).to_le_bytes());
    frame.extend_from_slice(message);
    frame
}

/// The message at the start of `bytes` and the length of its frame.
fn read_frame(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let message = rest.get(..usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    (crc32fast::hash(message) == u32::from_le_bytes(*crc)).then_some((message, 12 + message.len()))
}
