//! Device memory for keys, values and adapters: one allocation with two ends. KV blocks grow from
//! the start, adapters' extents from the end, each contiguous and as large as its rank needs.
//!
//! ```text
//! | block 0 | block 1 | ...            | extent | free | extent | extent |
//! ```
//! The border between them is fixed while the engine's [`Capacity`](crate::backend::Capacity) is.

use std::collections::BTreeMap;

/// Extents start at multiples of this, in bytes.
pub const EXTENT_ALIGN: u64 = 256;

/// Places contiguous extents in a range of bytes.
#[derive(Debug)]
pub struct Extents {
    bytes: u64,
    used: u64,
    /// Start to length, both multiples of [`EXTENT_ALIGN`].
    placed: BTreeMap<u64, u64>,
}

/// An extent that changes place. Moves are done in order; the ranges may overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub from: u64,
    pub to: u64,
    pub bytes: u64,
}

impl Extents {
    pub fn new(bytes: u64) -> Self {
        Self { bytes: bytes / EXTENT_ALIGN * EXTENT_ALIGN, used: 0, placed: BTreeMap::new() }
    }

    /// Bytes in no extent, perhaps not contiguous.
    pub fn free(&self) -> u64 {
        self.bytes - self.used
    }

    /// The start of a new extent in the smallest gap that holds it; None when no gap does.
    pub fn place(&mut self, bytes: u64) -> Option<u64> {
        let bytes = bytes.checked_next_multiple_of(EXTENT_ALIGN)?;
        let mut best: Option<(u64, u64)> = None;
        let mut end = 0;
        let rest = std::iter::once((self.bytes, 0));
        for (start, length) in self.placed.iter().map(|(s, l)| (*s, *l)).chain(rest) {
            let gap = start - end;
            if gap >= bytes && best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, end));
            }
            end = start + length;
        }
        let (_, start) = best?;
        self.placed.insert(start, bytes);
        self.used += bytes;
        Some(start)
    }

    pub fn free_at(&mut self, start: u64) {
        if let Some(bytes) = self.placed.remove(&start) {
            self.used -= bytes;
        }
    }

    /// Closes all gaps. The caller copies the bytes, in the order of the moves.
    pub fn compact(&mut self) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut end = 0;
        for (from, bytes) in std::mem::take(&mut self.placed) {
            if from != end {
                moves.push(Move { from, to: end, bytes });
            }
            self.placed.insert(end, bytes);
            end += bytes;
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Action {
        Place(u64),
        Free(usize),
        Compact,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => (1u64..5000).prop_map(Action::Place),
            3 => any::<usize>().prop_map(Action::Free),
            1 => Just(Action::Compact),
        ]
    }

    proptest! {
        #[test]
        fn extents_never_overlap_and_moves_keep_their_bytes(
            actions in prop::collection::vec(action(), 1..80)
        ) {
            let mut extents = Extents::new(20_000);
            let mut memory = vec![0u8; 20_000];
            let mut live: Vec<(u64, u64, u8)> = Vec::new();
            for (id, action) in (1u8..).zip(actions) {
                match action {
                    Action::Place(bytes) => {
                        let Some(start) = extents.place(bytes) else {
                            continue;
                        };
                        prop_assert_eq!(start % EXTENT_ALIGN, 0);
                        memory[start as usize..][..bytes as usize].fill(id);
                        live.push((start, bytes, id));
                    }
                    Action::Free(_) if live.is_empty() => {}
                    Action::Free(index) => {
                        let (start, ..) = live.swap_remove(index % live.len());
                        extents.free_at(start);
                    }
                    Action::Compact => {
                        for Move { from, to, bytes } in extents.compact() {
                            prop_assert!(to < from);
                            let (from, to) = (from as usize, to as usize);
                            memory.copy_within(from..from + bytes as usize, to);
                            for extent in &mut live {
                                if extent.0 == from as u64 {
                                    extent.0 = to as u64;
                                }
                            }
                        }
                        let free = extents.free();
                        if free > 0 {
                            let start = extents.place(free).expect("one gap after compaction");
                            extents.free_at(start);
                        }
                    }
                }
                for (start, bytes, id) in &live {
                    let own = &memory[*start as usize..][..*bytes as usize];
                    prop_assert!(own.iter().all(|byte| byte == id));
                }
            }
        }
    }
}
