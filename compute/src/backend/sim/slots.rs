//! What the adapter slots would hold.

use crate::backend::AdapterKey;
use crate::backend::{AdapterSlot, BackendError, UploadDone};
use std::time::Instant;

struct Slot {
    generation: u32,
    key: AdapterKey,
    bytes: u64,
    state: State,
    /// Steps submitted and not collected that read it.
    readers: i32,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Uploading { ready_at: Instant, refused: bool },
    Live,
}

pub(super) struct Slots {
    slots: Vec<Option<Slot>>,
    /// Of the latest owner; a reused index must come with a new one.
    generations: Vec<u32>,
    bytes: u64,
    free_bytes: u64,
    /// What an eviction did wrong; it has no result of its own.
    fault: Option<String>,
}

impl Slots {
    pub fn new(max_slots: u32, bytes: u64) -> Self {
        Self {
            slots: (0..max_slots).map(|_| None).collect(),
            generations: vec![0; max_slots as usize],
            bytes,
            free_bytes: bytes,
            fault: None,
        }
    }

    pub fn fault(&self) -> Result<(), String> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Changes the budget; an error when more is in use.
    pub fn set_bytes(&mut self, bytes: u64) -> Result<(), String> {
        let used = self.bytes - self.free_bytes;
        let over = || format!("adapters use {used} bytes and would have {bytes}");
        self.free_bytes = bytes.checked_sub(used).ok_or_else(over)?;
        self.bytes = bytes;
        Ok(())
    }

    pub fn is_uploading(&self) -> bool {
        let uploading = |slot: &Slot| matches!(slot.state, State::Uploading { .. });
        self.slots.iter().flatten().any(uploading)
    }

    pub fn begin(
        &mut self,
        slot: AdapterSlot,
        key: AdapterKey,
        bytes: u64,
        ready_at: Instant,
        refused: bool,
    ) -> Result<(), BackendError> {
        let device = |reason: String| Err(BackendError::Device(reason));
        let index = slot.index as usize;
        match self.slots.get(index) {
            None => return device(format!("slot {index} does not exist")),
            Some(Some(_)) => return device(format!("slot {index} is in use")),
            Some(None) => {}
        }
        if self.generations[index] == slot.generation {
            return device(format!("slot {index} is given away again under its old generation"));
        }
        if bytes > self.free_bytes {
            return Err(BackendError::OutOfMemory { what: "memory for adapters", bytes });
        }
        self.free_bytes -= bytes;
        self.generations[index] = slot.generation;
        let state = State::Uploading { ready_at, refused };
        self.slots[index] =
            Some(Slot { generation: slot.generation, key, bytes, state, readers: 0 });
        Ok(())
    }

    pub fn poll(&mut self, now: Instant, done: &mut Vec<UploadDone>) {
        for (index, place) in self.slots.iter_mut().enumerate() {
            let Some(slot) = place else { continue };
            let State::Uploading { ready_at, refused } = slot.state else { continue };
            if now < ready_at {
                continue;
            }
            let name = AdapterSlot { index: index as u32, generation: slot.generation };
            let result = if refused {
                self.free_bytes += slot.bytes;
                *place = None;
                Err(BackendError::Adapter("refused by the simulation".into()))
            } else {
                slot.state = State::Live;
                Ok(())
            };
            done.push(UploadDone { slot: name, result });
        }
    }

    pub fn evict(&mut self, slot: AdapterSlot) {
        match self.get(slot) {
            Ok(Slot { state: State::Live, readers: 0, bytes, .. }) => {
                self.free_bytes += *bytes;
                self.slots[slot.index as usize] = None;
            }
            Ok(_) => self.fault = Some(format!("slot {} is evicted while in use", slot.index)),
            Err(reason) => self.fault = Some(reason),
        }
    }

    /// The adapter in a slot that may be read.
    pub fn live(&self, slot: AdapterSlot) -> Result<AdapterKey, String> {
        match self.get(slot)? {
            Slot { state: State::Live, key, .. } => Ok(*key),
            _ => Err(format!("slot {} is read before its upload ended", slot.index)),
        }
    }

    /// Steps that read the slots have been submitted (1) or collected (-1).
    pub fn reading(&mut self, slots: &[AdapterSlot], change: i32) {
        for slot in slots {
            if let Some(slot) = self.slots.get_mut(slot.index as usize).and_then(Option::as_mut) {
                slot.readers += change;
            }
        }
    }

    fn get(&self, slot: AdapterSlot) -> Result<&Slot, String> {
        let found = self.slots.get(slot.index as usize).and_then(Option::as_ref);
        found
            .filter(|found| found.generation == slot.generation)
            .ok_or_else(|| format!("slot {} has been given to another", slot.index))
    }
}
