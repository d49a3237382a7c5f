//! Blocks in the order in which they were released. Every operation takes constant time.

use super::BlockId;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Links {
    older: u32,
    newer: u32,
}

/// A doubly linked list threaded through an array with one place for each block.
#[derive(Debug)]
pub(super) struct Lru {
    links: Vec<Links>,
    oldest: u32,
    newest: u32,
    len: u32,
}

impl Lru {
    pub fn new(num_blocks: u32) -> Self {
        let links = vec![Links { older: NONE, newer: NONE }; num_blocks as usize];
        Self { links, oldest: NONE, newest: NONE, len: 0 }
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    /// The block must not be in the list.
    pub fn push_newest(&mut self, block: BlockId) {
        let older = std::mem::replace(&mut self.newest, block.0);
        self.links[block.0 as usize] = Links { older, newer: NONE };
        match older {
            NONE => self.oldest = block.0,
            _ => self.links[older as usize].newer = block.0,
        }
        self.len += 1;
    }

    pub fn pop_oldest(&mut self) -> Option<BlockId> {
        let block = (self.oldest != NONE).then_some(BlockId(self.oldest))?;
        self.remove(block);
        Some(block)
    }

    /// The block must be in the list.
    pub fn remove(&mut self, block: BlockId) {
        let Links { older, newer } = self.links[block.0 as usize];
        match older {
            NONE => self.oldest = newer,
            _ => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.links[newer as usize].older = older,
        }
        self.len -= 1;
    }

    /// Gives a block's place in the order, which must be in the list, to another, which must not.
    pub fn rename(&mut self, from: BlockId, to: BlockId) {
        let links = self.links[from.0 as usize];
        self.links[to.0 as usize] = links;
        match links.older {
            NONE => self.oldest = to.0,
            older => self.links[older as usize].newer = to.0,
        }
        match links.newer {
            NONE => self.newest = to.0,
            newer => self.links[newer as usize].older = to.0,
        }
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let some = |block: u32| (block != NONE).then_some(block);
        std::iter::successors(some(self.oldest), move |b| some(self.links[*b as usize].newer))
            .map(BlockId)
    }
}
