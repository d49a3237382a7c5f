//! Puts a snapshot together from its chunks. Nothing of it counts before it is whole.

use lorikeet_contract::link::{Resource, SnapshotChunk};
use lorikeet_contract::manifest::ManifestState;

/// Why a snapshot is dropped; the node asks for another and serves what it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("chunk {got} of a snapshot where chunk {expected} belongs")]
    Order { expected: u32, got: u32 },
    #[error("a chunk of revision {got} inside a snapshot of revision {expected}")]
    Mixed { expected: u64, got: u64 },
    #[error("the snapshot's digest differs from the sender's")]
    Digest,
}

#[derive(Debug, Default)]
pub struct SnapshotAssembly {
    /// `(epoch, revision, digest)` that every chunk repeats; None between snapshots.
    of: Option<(u64, u64, Vec<u8>)>,
    next_index: u32,
    resources: Vec<Resource>,
}

impl SnapshotAssembly {
    /// Takes the next chunk. The last one gives the whole state, once the digest agrees. Chunk 0 begins
    /// anew whatever was there.
    pub fn push(&mut self, chunk: SnapshotChunk) -> Result<Option<ManifestState>, SnapshotError> {
        if chunk.index == 0 {
            *self = Self::default();
        }
        if chunk.index != self.next_index {
            let error = SnapshotError::Order { expected: self.next_index, got: chunk.index };
            *self = Self::default();
            return Err(error);
        }
        let of = (chunk.cp_epoch, chunk.revision, chunk.state_digest);
        let begun = self.of.get_or_insert_with(|| of.clone());
        if *begun != of {
            let error = SnapshotError::Mixed { expected: begun.1, got: of.1 };
            *self = Self::default();
            return Err(error);
        }
        self.resources.extend(chunk.resources);
        self.next_index += 1;
        if !chunk.last {
            return Ok(None);
        }
        let resources = std::mem::take(self).resources;
        let (cp_epoch, revision, digest) = of;
        let state = ManifestState::from_resources(cp_epoch, revision, resources);
        if state.digest()[..] != digest[..] {
            return Err(SnapshotError::Digest);
        }
        Ok(Some(state))
    }
}
