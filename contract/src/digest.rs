//! Content hashes. SHA-256 over the SHA-256 of each 4 MiB chunk, so that a large object can
//! be hashed and checked in parallel and while its parts arrive.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Bytes of one leaf of the hash.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Why a text or a byte string is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 32 bytes, or 64 hexadecimal digits")]
pub struct ParseDigestError;

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            pub fn from_slice(bytes: &[u8]) -> Result<Self, ParseDigestError> {
                bytes.try_into().map(Self).map_err(|_| ParseDigestError)
            }
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
            /// The first 12 hexadecimal digits, for people.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..6])
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.short())
            }
        }
        impl FromStr for $name {
            type Err = ParseDigestError;
            fn from_str(text: &str) -> Result<Self, ParseDigestError> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseDigestError)?;
                Ok(Self(bytes))
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest!(/// Hash of some bytes as they are.
    ContentDigest);
digest!(/// Identity of an adapter's uploaded content: its configuration without cosmetic fields and
    /// its tensors in their own dtype. With the tenant it is the key of everything derived from
    /// an adapter. A new node layout does not change it.
    AdapterDigest);
digest!(/// Hash of the file in node layout that an adapter was packed into.
    ArtifactDigest);
digest!(/// Hash of a base model's weights.
    WeightsDigest);

impl From<ContentDigest> for ArtifactDigest {
    fn from(d: ContentDigest) -> Self {
        Self(d.0)
    }
}
impl From<ContentDigest> for AdapterDigest {
    fn from(d: ContentDigest) -> Self {
        Self(d.0)
    }
}
impl From<ContentDigest> for WeightsDigest {
    fn from(d: ContentDigest) -> Self {
        Self(d.0)
    }
}

/// Hashes a stream of bytes; equal to [`ContentDigest::of`] of their concatenation.
#[derive(Clone)]
pub struct ContentHasher {
    leaf: Sha256,
    in_leaf: usize,
    root: Sha256,
    total: u64,
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl ContentHasher {
    pub fn new() -> Self {
        Self { leaf: Sha256::new(), in_leaf: 0, root: Sha256::new(), total: 0 }
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.total += bytes.len() as u64;
        while !bytes.is_empty() {
            let take = bytes.len().min(CHUNK_BYTES - self.in_leaf);
            self.leaf.update(&bytes[..take]);
            self.in_leaf += take;
            bytes = &bytes[take..];
            if self.in_leaf == CHUNK_BYTES {
                self.close_leaf();
            }
        }
    }

    fn close_leaf(&mut self) {
        let leaf = std::mem::replace(&mut self.leaf, Sha256::new()).finalize();
        self.root.update(leaf);
        self.in_leaf = 0;
    }

    pub fn finish(mut self) -> ContentDigest {
        if self.in_leaf > 0 {
            self.close_leaf();
        }
        finish_root(self.root, self.total)
    }
}

impl ContentDigest {
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = ContentHasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest of a whole from the leaf hashes of its 4 MiB chunks, in order, and its length.
    pub fn from_leaves(leaves: impl IntoIterator<Item = [u8; 32]>, total_bytes: u64) -> Self {
        let mut root = Sha256::new();
        for leaf in leaves {
            root.update(leaf);
        }
        finish_root(root, total_bytes)
    }
}

/// The hash of one chunk of at most [`CHUNK_BYTES`].
pub fn leaf(chunk: &[u8]) -> [u8; 32] {
    debug_assert!(chunk.len() <= CHUNK_BYTES);
    Sha256::digest(chunk).into()
}

/// The length closes the root, so that no list of leaves is another content's leaf.
fn finish_root(mut root: Sha256, total: u64) -> ContentDigest {
    root.update(total.to_le_bytes());
    ContentDigest(root.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_cut_of_the_stream_gives_the_digest_of_the_whole(
            len in 0usize..(CHUNK_BYTES * 2 + 9), cut in 0usize..(CHUNK_BYTES * 2 + 9), seed: u8,
        ) {
            let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
            let cut = cut.min(len);
            let mut hasher = ContentHasher::new();
            hasher.update(&bytes[..cut]);
            hasher.update(&bytes[cut..]);
            let whole = ContentDigest::of(&bytes);
            prop_assert_eq!(hasher.finish(), whole);
            let leaves = bytes.chunks(CHUNK_BYTES).map(leaf);
            prop_assert_eq!(ContentDigest::from_leaves(leaves, len as u64), whole);
        }
    }
}
