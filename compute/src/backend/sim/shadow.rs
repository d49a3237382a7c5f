//! What the KV cache would hold.

use crate::backend::batch::SequenceId;
use crate::backend::{AdapterKey, BlockId, BlockMove, SequenceStep};

/// One position of one block. `state` stands for keys and values: it follows from the adapter and
/// from all tokens up to here.
#[derive(Debug, Clone, Copy)]
struct Cell {
    position: u32,
    token: u32,
    state: u64,
}

pub(super) struct Shadow {
    block_size: usize,
    /// Those from here on are adapters'.
    num_blocks: usize,
    cells: Vec<Option<Cell>>,
    /// Who wrote a block's first position, and so owns the rest of it.
    writers: Vec<Option<SequenceId>>,
    check_prefixes: bool,
}

impl Shadow {
    pub fn new(num_blocks: u32, block_size: u32, check_prefixes: bool) -> Self {
        Self {
            block_size: block_size as usize,
            num_blocks: num_blocks as usize,
            cells: vec![None; num_blocks as usize * block_size as usize],
            writers: vec![None; num_blocks as usize],
            check_prefixes,
        }
    }

    pub fn num_blocks(&self) -> u32 {
        self.num_blocks as u32
    }

    /// A block that has been left, or that adapters have had, holds nothing.
    pub fn set_blocks(&mut self, num_blocks: u32, moves: &[BlockMove]) -> Result<(), String> {
        let (before, after) = (self.num_blocks, num_blocks as usize);
        for &BlockMove { from: BlockId(from), to: BlockId(to) } in moves {
            let (from, to) = (from as usize, to as usize);
            if !(after..before).contains(&from) || to >= after.min(before) {
                return Err(format!("block {from} cannot become block {to}"));
            }
            let start = from * self.block_size;
            self.cells.copy_within(start..start + self.block_size, to * self.block_size);
            self.writers[to] = self.writers[from];
        }
        for block in before.min(after)..before.max(after) {
            self.writers[block] = None;
            self.cells[block * self.block_size..][..self.block_size].fill(None);
        }
        self.num_blocks = after;
        Ok(())
    }

    /// Reads the prefix, writes the rows, and returns the state after the last of them.
    pub fn feed(
        &mut self,
        step: &SequenceStep,
        adapter: Option<AdapterKey>,
        tokens: &[u32],
    ) -> Result<u64, String> {
        let position = step.position as usize;
        if tokens.is_empty() || position + tokens.len() > step.blocks.len() * self.block_size {
            return Err("the blocks do not cover the rows".into());
        }
        let mut state = match position {
            0 => start(adapter),
            _ => self.read(step, position - 1)?.state,
        };
        if self.check_prefixes {
            self.check_prefix(step, adapter)?;
        }
        for (i, &token) in tokens.iter().enumerate() {
            state = mix(state, token.into());
            let cell = Cell { position: (position + i) as u32, token, state };
            self.write(step, position + i, cell)?;
        }
        Ok(state)
    }

    /// After the token at a position that the sequence's blocks hold.
    pub fn state(&self, step: &SequenceStep, position: usize) -> Result<u64, String> {
        Ok(self.read(step, position)?.state)
    }

    fn check_prefix(&self, step: &SequenceStep, adapter: Option<AdapterKey>) -> Result<(), String> {
        let mut state = start(adapter);
        for position in 0..step.position as usize {
            let cell = self.read(step, position)?;
            state = mix(state, cell.token.into());
            if cell.state != state {
                return Err(format!("position {position} holds another prefix or adapter"));
            }
        }
        Ok(())
    }

    fn place(&self, step: &SequenceStep, position: usize) -> Result<(usize, usize), String> {
        let block = step.blocks[position / self.block_size].0 as usize;
        if block >= self.num_blocks {
            return Err(format!("block {block} does not exist"));
        }
        Ok((block, block * self.block_size + position % self.block_size))
    }

    fn read(&self, step: &SequenceStep, position: usize) -> Result<Cell, String> {
        let (block, at) = self.place(step, position)?;
        self.cells[at]
            .filter(|cell| cell.position as usize == position)
            .ok_or_else(|| format!("block {block} does not hold position {position}"))
    }

    fn write(&mut self, step: &SequenceStep, position: usize, cell: Cell) -> Result<(), String> {
        let (block, at) = self.place(step, position)?;
        if position.is_multiple_of(self.block_size) {
            self.writers[block] = Some(step.sequence);
            self.cells[at..at + self.block_size].fill(None);
        } else if self.writers[block] != Some(step.sequence) {
            return Err(format!("block {block} belongs to {:?}", self.writers[block]));
        }
        self.cells[at] = Some(cell);
        Ok(())
    }
}

fn start(adapter: Option<AdapterKey>) -> u64 {
    let Some(key) = adapter else { return 0 };
    let tenant = key.tenant.as_uuid().into_bytes();
    let bytes = tenant.iter().chain(key.digest.as_bytes());
    bytes.fold(1, |state, byte| mix(state, (*byte).into()))
}

/// One round of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
pub(super) fn mix(state: u64, value: u64) -> u64 {
    let mut z =
        (state ^ value.wrapping_mul(0xD6E8_FEB8_6659_FD93)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
