//! The device's adapter slots and whom they were given to.

use crate::adapters::AdapterKey;
use crate::backend::AdapterSlot;

#[derive(Debug)]
pub(super) struct Slots {
    owners: Vec<Option<AdapterKey>>,
    /// Of the latest owner of each slot; a new one gets the next number.
    generations: Vec<u32>,
}

impl Slots {
    pub fn new(max_slots: u32) -> Self {
        Self { owners: vec![None; max_slots as usize], generations: vec![0; max_slots as usize] }
    }

    pub fn free(&self) -> usize {
        self.owners.iter().filter(|owner| owner.is_none()).count()
    }

    pub fn capacity(&self) -> usize {
        self.owners.len()
    }

    pub fn take(&mut self, owner: AdapterKey) -> Option<AdapterSlot> {
        let index = self.owners.iter().position(Option::is_none)?;
        self.owners[index] = Some(owner);
        self.generations[index] = self.generations[index].wrapping_add(1);
        Some(AdapterSlot { index: index as u32, generation: self.generations[index] })
    }

    /// None when the slot has been given to another since.
    pub fn owner(&self, slot: AdapterSlot) -> Option<AdapterKey> {
        let index = slot.index as usize;
        if self.generations.get(index) != Some(&slot.generation) {
            return None;
        }
        self.owners[index]
    }

    pub fn release(&mut self, slot: AdapterSlot) {
        debug_assert!(self.owner(slot).is_some());
        self.owners[slot.index as usize] = None;
    }
}
