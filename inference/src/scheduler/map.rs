//! Sequences by their id.

use lorikeet_compute::backend::batch::SequenceId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Looked up several times per row. Ids are counted up by the engine, so nobody can choose ones
/// that collide, and need no keyed hash.
pub type SequenceMap<V> = HashMap<SequenceId, V, BuildHasherDefault<IdHasher>>;

#[derive(Debug, Clone, Copy, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, id: u64) {
        // Fibonacci hashing (Knuth, TAOCP 3, 6.4): spreads neighbours over the high bits as well.
        self.0 = (self.0 ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
