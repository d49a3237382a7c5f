//! The device's adapter slots and whom they were given to.

use crate::adapters::AdapterKey;
use lorikeet_compute::backend::AdapterSlot;

#[derive(Debug)]
pub(super) struct Slots {
    owners: Vec<Option<AdapterKey>>,
    /// Of the latest owner of each slot; a new one gets the next number.
    generations: Vec<u32>,
    /// The latest plan in which each was read, or given away.
    ran: Vec<u64>,
}

impl Slots {
    pub fn new(max_slots: u32) -> Self {
        let slots = max_slots as usize;
        Self { owners: vec![None; slots], generations: vec![0; slots], ran: vec![0; slots] }
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

    /// The plan reads the slot, or its adapter arrived with it. False when that is known already.
    pub fn runs(&mut self, slot: AdapterSlot, plan: u64) -> bool {
        let ran = &mut self.ran[slot.index as usize];
        std::mem::replace(ran, plan) != plan
    }

    /// The latest plan of which [`Slots::runs`] was told.
    pub fn ran(&self, slot: AdapterSlot) -> u64 {
        self.ran[slot.index as usize]
    }

    pub fn release(&mut self, slot: AdapterSlot) {
        debug_assert!(self.owner(slot).is_some());
        self.owners[slot.index as usize] = None;
    }
}
