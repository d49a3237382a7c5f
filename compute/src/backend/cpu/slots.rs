//! The device tier of the CPU: a budget of bytes of packed adapters, which slots share with host
//! memory.

use super::adapter::PackedAdapter;
use super::element::Element;
use crate::backend::slots::{SlotTable, not_ready, refused};
use crate::backend::{AdapterSlot, BackendError, HostAdapter, HostData, UploadDone};
use std::sync::Arc;

pub struct Slots<T> {
    table: SlotTable<Place<T>>,
    /// Bytes of all adapters; at most `budget`.
    used: u64,
    budget: u64,
    /// Filled since the last poll.
    filled: Vec<AdapterSlot>,
}

struct Place<T> {
    bytes: u64,
    adapter: Arc<PackedAdapter<T>>,
    /// Its upload has been polled.
    is_ready: bool,
}

impl<T: Element> Slots<T> {
    pub fn new(slots: u32, budget: u64) -> Self {
        Self { table: SlotTable::new(slots), used: 0, budget, filled: Vec::new() }
    }

    /// Reserves the adapter's bytes and shares what host memory has of it.
    pub fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: &HostAdapter,
        bytes: u64,
    ) -> Result<(), BackendError> {
        self.table.check_empty(slot)?;
        if bytes > self.budget - self.used {
            return Err(BackendError::OutOfMemory { what: "memory for adapters", bytes });
        }
        let packed = match &adapter.data {
            HostData::Prepared(form) => form.clone().downcast().ok(),
            HostData::File(_) => None,
        };
        let adapter = packed.ok_or_else(|| refused(slot, "was given an adapter not prepared"))?;
        self.table.fill(slot, Place { bytes, adapter, is_ready: false });
        self.used += bytes;
        self.filled.push(slot);
        Ok(())
    }

    /// The uploads since the last call.
    pub fn poll(&mut self, done: &mut Vec<UploadDone>) {
        for slot in self.filled.drain(..) {
            let evicted = || refused(slot, "was evicted before its upload ended");
            let place = self.table.get_mut(slot).ok_or_else(evicted);
            let result = place.map(|place| place.is_ready = true);
            done.push(UploadDone { slot, result });
        }
    }

    pub fn evict(&mut self, slot: AdapterSlot) {
        if let Some(place) = self.table.take(slot) {
            self.used -= place.bytes;
        }
    }

    /// The adapter in a slot; an error when the slot has been given to another one meanwhile.
    pub fn get(&self, slot: AdapterSlot) -> Result<&Arc<PackedAdapter<T>>, BackendError> {
        let ready = self.table.get(slot).filter(|place| place.is_ready);
        ready.map(|place| &place.adapter).ok_or_else(|| not_ready(slot))
    }
}
