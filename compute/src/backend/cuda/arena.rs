//! Device memory for keys, values and adapters: one allocation with two ends. KV blocks grow from
//! the start, adapters' extents from the end, each contiguous and as large as its rank needs.
//!
//! ```text
//! | block 0 | block 1 | ...     border |    free    | extent | free | extent |
//! ```
//! Extents are placed by their distance from the end, so that what is free gathers at the border, which
//! [`Backend::set_blocks`](crate::backend::Backend::set_blocks) moves.

use crate::backend::BackendError;
use std::collections::BTreeMap;

/// Extents start at multiples of this, in bytes.
pub const EXTENT_ALIGN: u64 = 256;

/// The adapters' part of the arena, where none is given.
const ADAPTERS_PART: u64 = 8;
/// The part of the blocks that stays, where no number is given.
const STAYING_PART: u32 = 4;

/// How the arena is divided at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    pub num_blocks: u32,
    /// Those that stay when adapters need room.
    pub least_blocks: u32,
    /// That adapters have at least.
    pub adapter_bytes: u64,
}

impl Division {
    /// Of a `room` in bytes for blocks of `page` bytes, with the least number of blocks and the least
    /// bytes of adapters. Everything is taken, and what neither side must have is lent to the other;
    /// when both are given, no more than both is taken, and nothing lent.
    pub fn new(
        room: u64,
        page: u64,
        blocks: Option<u64>,
        adapters: Option<u64>,
    ) -> Result<Self, BackendError> {
        let adapter_bytes = adapters.unwrap_or(room / ADAPTERS_PART);
        let most = room.saturating_sub(adapter_bytes) / page;
        let least = blocks.unwrap_or(1);
        if least == 0 || least > most {
            let bytes = least.max(1).saturating_mul(page).saturating_add(adapter_bytes);
            let what = "device memory for keys, values and adapters";
            return Err(BackendError::OutOfMemory { what, bytes });
        }
        let all = blocks.filter(|_| adapters.is_some()).unwrap_or(most);
        let num_blocks = u32::try_from(all).unwrap_or(u32::MAX);
        let least_blocks = match blocks {
            Some(blocks) => u32::try_from(blocks).unwrap_or(u32::MAX),
            None => (num_blocks / STAYING_PART).max(1),
        };
        Ok(Self { num_blocks, least_blocks, adapter_bytes })
    }

    /// Of blocks of `page` bytes and adapters together. Its end is aligned as extents are.
    pub fn bytes(&self, page: u64) -> u64 {
        (u64::from(self.num_blocks) * page + self.adapter_bytes).next_multiple_of(EXTENT_ALIGN)
    }
}

/// Places contiguous extents in a range of bytes, counted from the arena's end to the border.
#[derive(Debug)]
pub struct Extents {
    /// Where the border is.
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

    /// Moves the border. False, and nothing has changed, while extents lie beyond.
    #[must_use]
    pub fn set_bytes(&mut self, bytes: u64) -> bool {
        let bytes = bytes / EXTENT_ALIGN * EXTENT_ALIGN;
        let fits = self.end() <= bytes;
        if fits {
            self.bytes = bytes;
        }
        fits
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the last extent ends.
    fn end(&self) -> u64 {
        self.placed.last_key_value().map_or(0, |(start, length)| start + length)
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

    /// Closes gaps, from the border on as many as it takes for `bytes` to be free there, or all. The
    /// caller copies the bytes, in the order of the moves: each goes down.
    pub fn gather(&mut self, bytes: u64) -> Vec<Move> {
        let mut free = self.bytes - self.end();
        let mut moving = Vec::new();
        while free < bytes
            && let Some((start, length)) = self.placed.pop_last()
        {
            free += start - self.end();
            moving.push((start, length));
        }
        let mut to = self.end();
        let mut moves = Vec::new();
        for (from, bytes) in moving.into_iter().rev() {
            if from != to {
                moves.push(Move { from, to, bytes });
            }
            self.placed.insert(to, bytes);
            to += bytes;
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
        Gather(u64),
        Border(u64),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => (1u64..5000).prop_map(Action::Place),
            3 => any::<usize>().prop_map(Action::Free),
            1 => (0u64..20_000).prop_map(Action::Gather),
            1 => (0u64..=20_000).prop_map(Action::Border),
        ]
    }

    #[test]
    fn what_nobody_must_have_is_lent_unless_both_sizes_are_given() {
        let of = |blocks, adapters| Division::new(8000, 10, blocks, adapters).unwrap();
        let division = |num_blocks, least_blocks, adapter_bytes| Division {
            num_blocks,
            least_blocks,
            adapter_bytes,
        };
        assert_eq!(of(None, None), division(700, 175, 1000));
        assert_eq!(of(Some(300), None), division(700, 300, 1000));
        assert_eq!(of(None, Some(5000)), division(300, 75, 5000));
        assert_eq!(of(Some(300), Some(500)), division(300, 300, 500));
        assert_eq!(of(Some(300), Some(500)).bytes(10), 3584);
        for (blocks, adapters) in [(Some(701), None), (Some(1), Some(7991)), (None, Some(8000))] {
            let error = Division::new(8000, 10, blocks, adapters).unwrap_err();
            assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
        }
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
                    Action::Border(bytes) => {
                        let end = live.iter().map(|(start, bytes, _)| start + bytes).max();
                        let moved = extents.set_bytes(bytes);
                        prop_assert!(!moved || end.unwrap_or(0) <= bytes);
                    }
                    Action::Gather(wanted) => {
                        for Move { from, to, bytes } in extents.gather(wanted) {
                            prop_assert!(to < from);
                            let (from, to) = (from as usize, to as usize);
                            memory.copy_within(from..from + bytes as usize, to);
                            for extent in &mut live {
                                if extent.0 == from as u64 {
                                    extent.0 = to as u64;
                                }
                            }
                        }
                        let free = extents.free().min(wanted) / EXTENT_ALIGN * EXTENT_ALIGN;
                        let border = extents.bytes;
                        prop_assert!(extents.set_bytes(border - free), "it is free at the border");
                        prop_assert!(extents.set_bytes(border));
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
