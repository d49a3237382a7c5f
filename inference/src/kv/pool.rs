//! The physical blocks, and the tables that map a sequence's positions to them.

use super::BlockId;
use super::lru::Lru;
use super::prefix::{Parent, PrefixId, PrefixKey, PrefixScope};
use lorikeet_compute::backend::BlockMove;
use std::collections::HashMap;
use std::sync::Arc;

/// One sequence's blocks in logical order. Filled and emptied by the [`BlockPool`].
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// Leading blocks whose prefix is known to the index.
    indexed: usize,
    /// The prefix that ends with the last of them.
    prefix: Option<PrefixId>,
}

impl BlockTable {
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Follows what [`BlockPool::give_up`] has moved.
    pub fn relocate(&mut self, moves: &[BlockMove]) {
        for block in &mut self.blocks {
            if let Ok(at) = moves.binary_search_by_key(block, |moved| moved.from) {
                *block = moves[at].to;
            }
        }
    }

    fn parent(&self, scope: PrefixScope) -> Parent {
        self.prefix.map_or(Parent::Start(scope), Parent::Prefix)
    }
}

#[derive(Debug, Default)]
struct Block {
    /// Tables that hold it.
    refs: u32,
    /// Set while the index knows the block.
    prefix: Option<(PrefixId, Arc<PrefixKey>)>,
}

/// Hands out blocks and finds those that already hold a prefix.
/// `held + cached + free == num_blocks`, each block in exactly one of the three. The last blocks can be
/// given up, down to the least number, and come back later.
#[derive(Debug)]
pub struct BlockPool {
    block_size: usize,
    num_blocks: u32,
    least_blocks: u32,
    /// Those that have been given up included.
    blocks: Vec<Block>,
    /// Blocks that nobody holds and that hold nothing of use.
    free: Vec<BlockId>,
    /// Blocks that nobody holds, kept for their prefix.
    cached: Lru,
    index: HashMap<Arc<PrefixKey>, BlockId>,
    next_prefix: u64,
    /// Reused for look-ups.
    probe: PrefixKey,
}

impl BlockPool {
    /// All blocks of which cannot be given up.
    pub fn new(num_blocks: u32, block_size: u32) -> Self {
        Self {
            block_size: block_size as usize,
            num_blocks,
            least_blocks: num_blocks,
            blocks: (0..num_blocks).map(|_| Block::default()).collect(),
            free: (0..num_blocks).rev().map(BlockId).collect(),
            cached: Lru::new(num_blocks),
            index: HashMap::new(),
            next_prefix: 0,
            probe: PrefixKey { parent: Parent::Prefix(PrefixId(0)), tokens: Vec::new() },
        }
    }

    /// The same, at least so many of which stay.
    pub fn keeping(self, least_blocks: u32) -> Self {
        Self { least_blocks: least_blocks.min(self.num_blocks), ..self }
    }

    /// Without those that have been given up.
    pub fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    /// With them.
    pub fn most_blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Tokens that the blocks hold that always stay.
    pub fn max_tokens(&self) -> usize {
        self.least_blocks as usize * self.block_size
    }

    /// Blocks that nobody holds and that are kept for their prefix.
    pub fn cached(&self) -> u32 {
        self.cached.len()
    }

    /// Blocks that hold nothing of use.
    pub fn unused(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks that can be had, cached ones included.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 + self.cached.len()
    }

    /// Blocks that cover so many tokens.
    pub fn blocks_for(&self, tokens: usize) -> u32 {
        tokens.div_ceil(self.block_size) as u32
    }

    /// Gives an empty table blocks for all of `tokens`, those at the start from the cache where it
    /// has them. Returns the number of tokens that need not be computed, always fewer than there
    /// are; or None, and an empty table, when there is no room.
    pub fn admit(
        &mut self,
        scope: PrefixScope,
        tokens: &[u32],
        table: &mut BlockTable,
    ) -> Option<u32> {
        self.admit_reusing(scope, tokens, tokens.len(), table)
    }

    /// The same, with at most so many tokens from the cache.
    pub fn admit_reusing(
        &mut self,
        scope: PrefixScope,
        tokens: &[u32],
        most: usize,
        table: &mut BlockTable,
    ) -> Option<u32> {
        debug_assert!(table.blocks.is_empty());
        // The last token is computed in any case: its logits are what is asked for.
        let reusable = most.min(tokens.len().saturating_sub(1)) / self.block_size;
        for chunk in tokens.chunks_exact(self.block_size).take(reusable) {
            let Some((block, prefix)) = self.find(table.parent(scope), chunk) else { break };
            self.hold(block);
            table.blocks.push(block);
            table.indexed += 1;
            table.prefix = Some(prefix);
        }
        let computed = table.blocks.len() * self.block_size;
        if !self.grow(table, tokens.len()) {
            self.release(table);
            return None;
        }
        Some(computed as u32)
    }

    /// Extends the table until it covers so many tokens. False, and nothing changed, when there
    /// is no room.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let wanted = tokens.div_ceil(self.block_size);
        let missing = wanted.saturating_sub(table.blocks.len());
        if missing > self.available() as usize {
            return false;
        }
        for _ in 0..missing {
            let block = self.take();
            table.blocks.push(block);
        }
        true
    }

    /// How many of the tables, released in this order, make so many more blocks available; None when
    /// all are too few. What others hold, too, stays theirs.
    pub fn releases_for<'a>(
        &self,
        blocks: u32,
        tables: impl IntoIterator<Item = &'a BlockTable>,
    ) -> Option<usize> {
        let mut tables = tables.into_iter();
        let mut shared: HashMap<BlockId, u32> = HashMap::new();
        let (mut released, mut gained) = (0, 0);
        while gained < blocks {
            for block in &tables.next()?.blocks {
                let refs = self.blocks[block.0 as usize].refs;
                let is_last = refs == 1 || {
                    let released = shared.entry(*block).or_default();
                    *released += 1;
                    *released == refs
                };
                gained += u32::from(is_last);
            }
            released += 1;
        }
        Some(released)
    }

    /// Makes full blocks known by their prefix. `tokens` are the sequence's first ones, as many as
    /// have been computed by collected steps.
    pub fn index(&mut self, scope: PrefixScope, tokens: &[u32], table: &mut BlockTable) {
        let full = tokens.chunks_exact(self.block_size);
        for (i, chunk) in full.enumerate().take(table.blocks.len()).skip(table.indexed) {
            let parent = table.parent(scope);
            // Another sequence may have computed the same at the same time. Its block stays the
            // known one, ours serves us alone, and what follows hangs on the same path.
            let prefix = match self.find(parent, chunk) {
                Some((_, prefix)) => prefix,
                None => self.insert(table.blocks[i]),
            };
            table.indexed = i + 1;
            table.prefix = Some(prefix);
        }
    }

    /// Empties the table. Its known blocks stay cached until their room is needed.
    pub fn release(&mut self, table: &mut BlockTable) {
        // From the end, so that of a chain the last block is evicted first.
        for block in table.blocks.drain(..).rev() {
            let state = &mut self.blocks[block.0 as usize];
            state.refs -= 1;
            match (state.refs, &state.prefix) {
                (0, Some(_)) => self.cached.push_newest(block),
                (0, None) => self.free.push(block),
                _ => {}
            }
        }
        table.indexed = 0;
        table.prefix = None;
    }

    /// Blocks that [`BlockPool::give_up`] can give up now.
    pub fn dispensable(&self) -> u32 {
        self.available().min(self.num_blocks - self.least_blocks)
    }

    /// Gives up the last blocks, as many as `count`, which are dispensable. What was cached longest ago
    /// makes room where too few are free; what the last blocks hold moves. Gives the moves, from
    /// ascending blocks; each table must [follow](BlockTable::relocate) them.
    pub fn give_up(&mut self, count: u32) -> Vec<BlockMove> {
        debug_assert!(count <= self.dispensable());
        while self.unused() < count
            && let Some(oldest) = self.cached.pop_oldest()
        {
            self.forget(oldest);
            self.free.push(oldest);
        }
        let given_up = self.num_blocks - count..self.num_blocks;
        self.num_blocks = given_up.start;
        self.free.retain(|block| block.0 < given_up.start);
        let mut moves = Vec::new();
        for from in given_up.map(BlockId) {
            let state = std::mem::take(&mut self.blocks[from.0 as usize]);
            if state.refs == 0 && state.prefix.is_none() {
                continue;
            }
            let to = self.free.pop().expect("as many stay free as are given up and not free");
            if state.refs == 0 {
                self.cached.rename(from, to);
            }
            if let Some((_, key)) = &state.prefix {
                self.index.insert(Arc::clone(key), to);
            }
            self.blocks[to.0 as usize] = state;
            moves.push(BlockMove { from, to });
        }
        moves
    }

    /// Takes back so many of the blocks that were given up. They are handed out last, so that they can
    /// be given up again at little cost.
    pub fn take_back(&mut self, count: u32) {
        let end = (self.num_blocks + count).min(self.most_blocks());
        self.free.splice(0..0, (self.num_blocks..end).rev().map(BlockId));
        self.num_blocks = end;
    }

    fn find(&mut self, parent: Parent, tokens: &[u32]) -> Option<(BlockId, PrefixId)> {
        self.probe.parent = parent;
        self.probe.tokens.clear();
        self.probe.tokens.extend_from_slice(tokens);
        let block = *self.index.get(&self.probe)?;
        self.blocks[block.0 as usize].prefix.as_ref().map(|(prefix, _)| (block, *prefix))
    }

    /// Indexes a block under the key that `find` has just looked for.
    fn insert(&mut self, block: BlockId) -> PrefixId {
        let prefix = PrefixId(self.next_prefix);
        self.next_prefix += 1;
        let key = Arc::new(self.probe.clone());
        self.index.insert(Arc::clone(&key), block);
        self.blocks[block.0 as usize].prefix = Some((prefix, key));
        prefix
    }

    fn hold(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.0 as usize];
        if state.refs == 0 {
            self.cached.remove(block);
        }
        state.refs += 1;
    }

    /// A block for one owner. The caller has checked that there is one.
    fn take(&mut self) -> BlockId {
        let block = self
            .free
            .pop()
            .or_else(|| self.cached.pop_oldest())
            .expect("the caller compared with available()");
        self.forget(block);
        self.blocks[block.0 as usize].refs = 1;
        block
    }

    /// The index knows the block no longer.
    fn forget(&mut self, block: BlockId) {
        if let Some((_, key)) = self.blocks[block.0 as usize].prefix.take() {
            self.index.remove(&key);
        }
    }
}

#[cfg(test)]
impl BlockPool {
    /// Of the table's tokens, those that others may find.
    pub fn indexed_tokens(&self, table: &BlockTable) -> usize {
        table.indexed * self.block_size
    }

    /// `tables` are all that hold blocks of this pool.
    pub fn assert_invariants<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) {
        let mut refs = vec![0; self.blocks.len()];
        for table in tables {
            assert!(table.indexed <= table.blocks.len());
            for block in &table.blocks {
                refs[block.0 as usize] += 1;
            }
        }
        assert!((self.least_blocks..=self.most_blocks()).contains(&self.num_blocks));
        let mut unheld = vec![0; self.blocks.len()];
        for block in self.free.iter().copied().chain(self.cached.iter()) {
            unheld[block.0 as usize] += 1;
        }
        assert_eq!(self.cached.iter().count(), self.cached.len() as usize);
        for (i, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.refs, refs[i], "block {i}: references");
            let is_ours = i < self.num_blocks as usize;
            assert!(is_ours || (refs[i] == 0 && block.prefix.is_none()), "block {i} is given up");
            let is_unheld = is_ours && refs[i] == 0;
            assert_eq!(unheld[i], u32::from(is_unheld), "block {i}: held, cached or free");
            assert!(block.refs <= 1 || block.prefix.is_some(), "block {i} is shared, not indexed");
            if let Some((_, key)) = &block.prefix {
                assert_eq!(self.index.get(key), Some(&BlockId(i as u32)));
            }
        }
        assert!(self.free.iter().all(|b| self.blocks[b.0 as usize].prefix.is_none()));
        assert!(self.cached.iter().all(|b| self.blocks[b.0 as usize].prefix.is_some()));
        assert_eq!(self.index.len(), self.blocks.iter().filter(|b| b.prefix.is_some()).count());
    }
}

#[cfg(test)]
mod tests;
