//! The blocks of sequences that all have the same number, in memory that they share with adapters.

use crate::backend::cuda::check::Random;
use crate::backend::{BlockId, BlockMove};

pub struct Blocks {
    tables: Vec<Vec<BlockId>>,
    /// Those below it are blocks, those from it on are adapters'.
    border: u32,
}

impl Blocks {
    pub fn new(sequences: u32, each: u32, border: u32) -> Self {
        let table = |place: u32| (place * each..(place + 1) * each).map(BlockId).collect();
        Self { tables: (0..sequences).map(table).collect(), border }
    }

    pub fn table(&self, place: usize) -> Vec<BlockId> {
        self.tables[place].clone()
    }

    pub fn border(&self) -> u32 {
        self.border
    }

    /// The fewest blocks that hold all tables.
    pub fn least(&self) -> u32 {
        self.tables.iter().map(|table| table.len() as u32).sum()
    }

    /// Gives a sequence other blocks at random: what it had holds nothing of use.
    pub fn deal_anew(&mut self, place: usize, random: &mut Random) {
        let each = self.tables[place].len();
        self.tables[place].clear();
        let mut free = self.free(self.border);
        let draw = || free.swap_remove(random.below(free.len() as u64) as usize);
        self.tables[place].extend(std::iter::repeat_with(draw).take(each));
    }

    /// Blocks below a border that no table has.
    fn free(&self, border: u32) -> Vec<BlockId> {
        let is_held = |block: &BlockId| self.tables.iter().flatten().any(|held| held == block);
        (0..border.min(self.border)).map(BlockId).filter(|block| !is_held(block)).collect()
    }

    /// Where tables that lie beyond a new border go: to blocks at random.
    pub fn moves_to(&self, border: u32, random: &mut Random) -> Vec<BlockMove> {
        let mut free = self.free(border);
        let held = self.tables.iter().flatten().copied();
        held.filter(|block| block.0 >= border)
            .map(|from| {
                let at = random.below(free.len() as u64) as usize;
                BlockMove { from, to: free.swap_remove(at) }
            })
            .collect()
    }

    /// The border is there, and the moves have been made.
    pub fn follow(&mut self, border: u32, moves: &[BlockMove]) {
        for block in self.tables.iter_mut().flatten() {
            if let Some(moved) = moves.iter().find(|moved| moved.from == *block) {
                *block = moved.to;
            }
        }
        self.border = border;
    }
}
