//! The manifest: what a node knows of the world, as a set of resources with one revision, and the
//! digest by which both ends notice that they disagree.
//!
//! The digest is additive per kind (a multiset hash: the sum, modulo 2^256, of a hash of each
//! resource), so that a change costs the same whether the state holds ten resources or a million.
//! It detects drift and lost messages; it does not defend against a forger, whom the link's
//! authentication keeps out.

use crate::link::{Delta, Resource, ResourceKind};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The kinds that enter the digest, in the order of its lanes. Only ever appended to.
pub const KINDS: [ResourceKind; 4] =
    [ResourceKind::Tenant, ResourceKind::Key, ResourceKind::Adapter, ResourceKind::Alias];

/// Number of lanes. A kind that this build does not know shares the last lane, so that the sums
/// still agree with a newer peer's only if the peer does the same: new kinds need a new protocol
/// version.
const LANES: usize = KINDS.len() + 1;

/// One 256-bit little-endian sum per kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateDigest {
    sums: [[u64; 4]; LANES],
}

impl StateDigest {
    pub fn add(&mut self, kind: i32, id: &str, payload: &[u8]) {
        let lane = &mut self.sums[lane(kind)];
        let mut carry = false;
        for (sum, term) in lane.iter_mut().zip(term(kind, id, payload)) {
            let (s, c1) = sum.overflowing_add(term);
            let (s, c2) = s.overflowing_add(u64::from(carry));
            *sum = s;
            carry = c1 | c2;
        }
    }

    pub fn remove(&mut self, kind: i32, id: &str, payload: &[u8]) {
        let lane = &mut self.sums[lane(kind)];
        let mut borrow = false;
        for (sum, term) in lane.iter_mut().zip(term(kind, id, payload)) {
            let (s, b1) = sum.overflowing_sub(term);
            let (s, b2) = s.overflowing_sub(u64::from(borrow));
            *sum = s;
            borrow = b1 | b2;
        }
    }

    /// What is compared on the wire.
    pub fn finish(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    /// For a holder that keeps the sums beside the state.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.sums.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// `None` when the length is not that of this build's lanes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LANES * 32 {
            return None;
        }
        let mut digest = Self::default();
        for (word, chunk) in digest.sums.iter_mut().flatten().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        Some(digest)
    }
}

fn lane(kind: i32) -> usize {
    KINDS.iter().position(|k| *k as i32 == kind).unwrap_or(LANES - 1)
}

fn term(kind: i32, id: &str, payload: &[u8]) -> [u64; 4] {
    let hash = Sha256::new()
        .chain_update(kind.to_le_bytes())
        .chain_update((id.len() as u64).to_le_bytes())
        .chain_update(id)
        .chain_update(payload)
        .finalize();
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(hash.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().expect("chunks of eight"));
    }
    words
}

/// Why a delta was not applied. The holder asks for a snapshot and serves what it has meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error(
        "the delta starts at revision {from} of epoch {cp_epoch}, this manifest is at {at} of {at_epoch}"
    )]
    Gap { from: u64, cp_epoch: u64, at: u64, at_epoch: u64 },
    #[error("the digest after the change differs from the sender's")]
    Digest,
}

/// The resources themselves, as opaque payloads. Cheap to clone: payloads are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManifestState {
    pub cp_epoch: u64,
    pub revision: u64,
    resources: BTreeMap<(i32, String), Arc<[u8]>>,
    digest: StateDigest,
}

impl ManifestState {
    /// A whole state, as a snapshot delivers it.
    pub fn from_resources(
        cp_epoch: u64,
        revision: u64,
        resources: impl IntoIterator<Item = Resource>,
    ) -> Self {
        let mut state = Self { cp_epoch, revision, ..Self::default() };
        for r in resources {
            state.upsert(r.kind, r.id, r.payload.into());
        }
        state
    }

    pub fn digest(&self) -> [u8; 32] {
        self.digest.finish()
    }

    pub fn len(&self) -> usize {
        self.resources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (i32, &str, &[u8])> {
        self.resources.iter().map(|((kind, id), payload)| (*kind, id.as_str(), &**payload))
    }

    /// The resources after `position` in the order of [`Self::iter`]; `None` is the start. Lets a
    /// sender cut a state into chunks without holding them all.
    pub fn iter_after<'a>(
        &'a self,
        position: Option<&'a (i32, String)>,
    ) -> impl Iterator<Item = (&'a (i32, String), &'a Arc<[u8]>)> {
        let from = position.map_or(Bound::Unbounded, Bound::Excluded);
        self.resources.range((from, Bound::Unbounded))
    }

    pub fn get(&self, kind: ResourceKind, id: &str) -> Option<&[u8]> {
        self.get_raw(kind as i32, id)
    }

    /// As [`Self::get`], for a kind that this build may not know.
    pub fn get_raw(&self, kind: i32, id: &str) -> Option<&[u8]> {
        self.resources.get(&(kind, id.to_owned())).map(|p| &**p)
    }

    /// Sets one resource, whatever the kind. The caller moves `revision`.
    pub fn upsert(&mut self, kind: i32, id: String, payload: Arc<[u8]>) {
        self.digest.add(kind, &id, &payload);
        if let Some(old) = self.resources.insert((kind, id.clone()), payload) {
            self.digest.remove(kind, &id, &old);
        }
    }

    /// Deletes one resource; an absent one is no error. The caller moves `revision`.
    pub fn remove(&mut self, kind: i32, id: &str) {
        if let Some(old) = self.resources.remove(&(kind, id.to_owned())) {
            self.digest.remove(kind, id, &old);
        }
    }

    /// The state after `delta`, or why it does not follow from this one; `self` is unchanged then.
    /// A delta that starts at or before the own revision is applied whole: upserts and tombstones
    /// carry final values, so repeating one is harmless.
    pub fn applied(&self, delta: &Delta) -> Result<Self, ApplyError> {
        if delta.cp_epoch != self.cp_epoch || delta.from_revision > self.revision {
            return Err(ApplyError::Gap {
                from: delta.from_revision,
                cp_epoch: delta.cp_epoch,
                at: self.revision,
                at_epoch: self.cp_epoch,
            });
        }
        let mut next = self.clone();
        for r in &delta.upserts {
            next.upsert(r.kind, r.id.clone(), r.payload.as_slice().into());
        }
        for r in &delta.tombstones {
            next.remove(r.kind, &r.id);
        }
        next.revision = delta.to_revision.max(self.revision);
        if next.digest()[..] != delta.state_digest[..] {
            return Err(ApplyError::Digest);
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::ResourceRef;
    use proptest::prelude::*;

    fn resource(kind: i32, id: u8, payload: u8) -> Resource {
        Resource { kind, id: id.to_string(), payload: vec![payload] }
    }

    proptest! {
        #[test]
        fn any_order_of_changes_that_ends_in_one_state_ends_in_one_digest(
            steps in proptest::collection::vec((1i32..6, 0u8..8, proptest::option::of(0u8..4)), 0..60),
        ) {
            let mut state = ManifestState::default();
            for (kind, id, payload) in &steps {
                match payload {
                    Some(p) => state.upsert(*kind, id.to_string(), vec![*p].into()),
                    None => state.remove(*kind, &id.to_string()),
                }
            }
            let fresh = ManifestState::from_resources(0, 0, state.iter().map(|(kind, id, p)| Resource {
                kind, id: id.to_owned(), payload: p.to_vec(),
            }));
            prop_assert_eq!(state.digest(), fresh.digest());
            let kept = StateDigest::from_bytes(&state.digest.to_bytes());
            prop_assert_eq!(kept, Some(fresh.digest));
        }
    }

    #[test]
    fn a_delta_that_leaves_something_out_is_noticed_and_changes_nothing() {
        let state = ManifestState::from_resources(7, 3, [resource(1, 1, 1)]);
        let after = ManifestState::from_resources(7, 4, [resource(1, 1, 2), resource(2, 1, 1)]);
        let mut delta = Delta {
            cp_epoch: 7,
            from_revision: 3,
            to_revision: 4,
            state_digest: after.digest().to_vec(),
            upserts: vec![resource(1, 1, 2)],
            tombstones: vec![],
        };
        assert_eq!(state.applied(&delta), Err(ApplyError::Digest));
        delta.upserts.push(resource(2, 1, 1));
        assert_eq!(state.applied(&delta).as_ref(), Ok(&after));
        assert_eq!(after.applied(&delta), Ok(after.clone()), "a repeat is harmless");
        delta.from_revision = 5;
        assert!(matches!(after.applied(&delta), Err(ApplyError::Gap { .. })));
    }

    #[test]
    fn only_a_tombstone_deletes() {
        let state = ManifestState::from_resources(1, 1, [resource(1, 1, 1), resource(3, 2, 2)]);
        let after = ManifestState::from_resources(1, 2, [resource(1, 1, 1)]);
        let delta = Delta {
            cp_epoch: 1,
            from_revision: 1,
            to_revision: 2,
            state_digest: after.digest().to_vec(),
            upserts: vec![],
            tombstones: vec![ResourceRef { kind: 3, id: "2".into() }],
        };
        assert_eq!(state.applied(&delta), Ok(after));
    }
}
