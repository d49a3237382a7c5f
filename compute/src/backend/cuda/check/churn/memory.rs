//! What comes to the device and leaves it, and where the border to the blocks is.

use super::{Churn, Memory, Resident};
use crate::backend::cuda::check::CheckError;
use crate::backend::cuda::layout::ExtentLayout;
use crate::backend::{AdapterSlot, Backend, BackendError, Capacity};

impl Churn {
    /// Starts to place adapters that sequences wait for, in the place of those that nobody has.
    pub(super) fn place_adapters(&mut self) -> Result<(), CheckError> {
        let mut done = Vec::new();
        self.cuda.poll_uploads(&mut done);
        for upload in done {
            upload.result?;
            let at = self.resident.iter_mut().find(|r| r.slot == upload.slot);
            at.into_iter().for_each(|r| r.is_ready = true);
        }
        let wanted: Vec<usize> = self.sequences.iter().filter_map(|s| s.adapter).collect();
        for &adapter in &wanted {
            if self.resident.iter().any(|r| r.adapter == adapter) {
                continue;
            }
            if !self.begin_upload(adapter)? && !self.borrow_for(adapter)? {
                let idle =
                    self.resident.iter().position(|r| r.is_ready && !wanted.contains(&r.adapter));
                match idle {
                    Some(index) => self.evict(index)?,
                    // Full of adapters in use: the next step, or one of the next, has room.
                    None => self.make_way(adapter)?,
                }
            }
        }
        Ok(())
    }

    /// Takes as many blocks as an adapter lacks, in which it is then placed.
    fn borrow_for(&mut self, adapter: usize) -> Result<bool, CheckError> {
        let wanted = self.bytes_of(adapter)? + self.resident_bytes()?;
        let Capacity { num_blocks, adapter_bytes, block_bytes, .. } = self.cuda.capacity();
        let lent = wanted.saturating_sub(adapter_bytes).div_ceil(block_bytes) as u32;
        let border = num_blocks.saturating_sub(lent).min(self.blocks.border());
        if self.memory == Memory::Fixed || border < self.blocks.least() {
            return Ok(false);
        }
        self.set_border(border)?;
        self.begin_upload(adapter)
    }

    /// Now and then blocks get back some of what adapters do not use.
    pub(super) fn leave_blocks(&mut self) -> Result<(), CheckError> {
        if self.memory == Memory::Fixed || self.random.below(8) > 0 {
            return Ok(());
        }
        let Capacity { num_blocks, adapter_bytes, block_bytes, .. } = self.cuda.capacity();
        let used = self.resident_bytes()?.saturating_sub(adapter_bytes);
        let most = num_blocks - used.div_ceil(block_bytes) as u32;
        let border = self.blocks.border();
        let more = self.random.below(u64::from(most.saturating_sub(border)) + 1) as u32;
        self.set_border(border + more)
    }

    fn set_border(&mut self, border: u32) -> Result<(), CheckError> {
        let moves = self.blocks.moves_to(border, &mut self.random);
        match self.cuda.set_blocks(border, &moves) {
            Err(BackendError::NoRoomYet { .. }) => return Ok(()),
            result => result?,
        }
        self.borders += u64::from(border != self.blocks.border());
        self.moved += moves.len() as u64;
        self.blocks.follow(border, &moves);
        Ok(())
    }

    fn bytes_of(&self, adapter: usize) -> Result<u64, CheckError> {
        Ok(ExtentLayout::new(&self.adapters[adapter].header, &self.spec)?.bytes)
    }

    fn resident_bytes(&self) -> Result<u64, CheckError> {
        self.resident.iter().map(|resident| self.bytes_of(resident.adapter)).sum()
    }

    /// Sequences of the adapter that is wanted least end early, so that one that does not fit gets in.
    fn make_way(&mut self, for_adapter: usize) -> Result<(), CheckError> {
        if self.resident.iter().any(|r| !r.is_ready) {
            return Ok(());
        }
        let Some(index) = self.resident.iter().position(|r| r.adapter != for_adapter) else {
            return Ok(());
        };
        let adapter = self.resident[index].adapter;
        self.drain()?;
        for sequence in self.sequences.iter_mut().filter(|s| s.adapter == Some(adapter)) {
            sequence.target = sequence.position;
        }
        self.evict(index)
    }

    fn begin_upload(&mut self, adapter: usize) -> Result<bool, CheckError> {
        self.generation += 1;
        let used = |index: u32| self.resident.iter().any(|r| r.slot.index == index);
        let index = (0..).find(|&index| !used(index)).unwrap_or(0);
        let slot = AdapterSlot { index, generation: self.generation };
        match self.cuda.begin_upload(slot, self.adapters[adapter].clone()) {
            Ok(()) => {
                self.resident.push(Resident { adapter, slot, is_ready: false });
                self.uploads += 1;
                Ok(true)
            }
            Err(BackendError::NoRoomYet { .. } | BackendError::OutOfMemory { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Frees a slot and fills its extent with NaN.
    fn evict(&mut self, index: usize) -> Result<(), CheckError> {
        self.drain()?;
        let Resident { adapter, slot, .. } = self.resident.swap_remove(index);
        let address = self.cuda.adapters.address(slot)?;
        let bytes = self.bytes_of(adapter)?;
        self.cuda.evict(slot);
        let poison = vec![0xffu8; bytes as usize];
        // SAFETY: the extent belongs to nobody, and no submitted step reads it.
        unsafe { self.cuda.stream.upload(address, &poison) }?;
        Ok(self.cuda.stream.synchronize()?)
    }
}
