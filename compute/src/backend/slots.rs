//! Which adapter is in which slot, for backends of real devices.

use super::{AdapterSlot, BackendError};

/// Slots, each with a device's own place for an adapter.
pub struct SlotTable<P> {
    entries: Vec<Option<Entry<P>>>,
}

struct Entry<P> {
    generation: u32,
    place: P,
}

impl<P> SlotTable<P> {
    pub fn new(slots: u32) -> Self {
        Self { entries: (0..slots).map(|_| None).collect() }
    }

    /// An error unless the slot exists and is empty.
    pub fn check_empty(&self, slot: AdapterSlot) -> Result<(), BackendError> {
        match self.entries.get(slot.index as usize) {
            None => Err(refused(slot, "does not exist")),
            Some(Some(_)) => Err(refused(slot, "is in use: evict it first")),
            Some(None) => Ok(()),
        }
    }

    /// Fills a slot that [`SlotTable::check_empty`] let pass.
    pub fn fill(&mut self, slot: AdapterSlot, place: P) {
        let entry = Entry { generation: slot.generation, place };
        self.entries[slot.index as usize] = Some(entry);
    }

    /// None when the slot is empty, or has been given to another adapter meanwhile.
    pub fn get(&self, slot: AdapterSlot) -> Option<&P> {
        let entry = self.entries.get(slot.index as usize)?.as_ref()?;
        (entry.generation == slot.generation).then_some(&entry.place)
    }

    /// As [`SlotTable::get`].
    pub fn get_mut(&mut self, slot: AdapterSlot) -> Option<&mut P> {
        let entry = self.entries.get_mut(slot.index as usize)?.as_mut()?;
        (entry.generation == slot.generation).then_some(&mut entry.place)
    }

    /// Empties the slot, unless it has been given to another adapter meanwhile.
    pub fn take(&mut self, slot: AdapterSlot) -> Option<P> {
        self.get(slot)?;
        self.entries[slot.index as usize].take().map(|entry| entry.place)
    }

    pub fn places_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.entries.iter_mut().flatten().map(|entry| &mut entry.place)
    }
}

pub fn refused(slot: AdapterSlot, what: &str) -> BackendError {
    BackendError::Adapter(format!("slot {} generation {} {what}", slot.index, slot.generation))
}

/// For a slot that a batch names and that cannot be read.
pub fn not_ready(slot: AdapterSlot) -> BackendError {
    refused(slot, "holds no ready adapter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_read_and_emptied_by_its_own_generation_only() {
        let slot = |index, generation| AdapterSlot { index, generation };
        let mut table = SlotTable::new(2);
        table.check_empty(slot(1, 3)).unwrap();
        table.fill(slot(1, 3), "a");
        assert!(table.check_empty(slot(1, 4)).unwrap_err().to_string().contains("evict it first"));
        assert!(table.check_empty(slot(2, 1)).unwrap_err().to_string().contains("does not exist"));
        assert_eq!((table.get(slot(1, 2)), table.get(slot(0, 3))), (None, None));
        assert_eq!(table.take(slot(1, 2)), None);
        assert_eq!(table.get(slot(1, 3)), Some(&"a"));
        assert_eq!(table.take(slot(1, 3)), Some("a"));
        table.check_empty(slot(1, 4)).unwrap();
    }
}
