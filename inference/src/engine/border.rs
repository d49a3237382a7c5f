//! Moves the border between KV blocks and adapters, as the scheduler and residency have decided.

use super::{Engine, EngineError};
use lorikeet_compute::backend::{BackendError, Capacity};

/// Blocks that always stay: what the backend keeps, and room for the longest sequence.
pub(super) fn least_blocks(capacity: &Capacity, context_length: u32) -> u32 {
    if capacity.block_bytes == 0 {
        return capacity.num_blocks;
    }
    capacity.least_blocks.max(context_length.div_ceil(capacity.block_size))
}

impl Engine {
    /// Between two steps: those submitted read the old places, and those that come the new ones.
    pub(super) fn give_up_blocks(&mut self, count: u32) -> Result<(), EngineError> {
        let moves = self.kv.give_up(count);
        self.scheduler.relocate(&moves);
        self.metrics.blocks_moved.add(moves.len() as u64);
        Ok(self.backend.set_blocks(self.kv.num_blocks(), &moves)?)
    }

    /// What cannot be had now is asked for again with the next step.
    pub(super) fn take_back_blocks(&mut self, count: u32) -> Result<(), EngineError> {
        match self.backend.set_blocks(self.kv.num_blocks() + count, &[]) {
            Err(BackendError::NoRoomYet { .. }) => return Ok(()),
            result => result?,
        }
        self.kv.take_back(count);
        self.residency.returned(count);
        Ok(())
    }
}
