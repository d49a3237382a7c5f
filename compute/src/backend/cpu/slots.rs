//! The device tier of the CPU: a budget of bytes of packed adapters.

use super::adapter::PackedAdapter;
use super::element::Element;
use super::model::PackedModel;
use crate::backend::slots::{SlotTable, not_ready, refused};
use crate::backend::uploads::{Placed, Uploads};
use crate::backend::{AdapterSlot, BackendError, HostAdapter, UploadDone};
use std::sync::Arc;

pub struct Slots<T> {
    table: SlotTable<Place<T>>,
    /// Bytes of all adapters, being packed or ready; at most `budget`.
    used: u64,
    budget: u64,
    uploads: Uploads<Arc<HostAdapter>, PackedAdapter<T>>,
}

struct Place<T> {
    bytes: u64,
    /// None while it is being packed.
    adapter: Option<Arc<PackedAdapter<T>>>,
}

impl<T: Element> Slots<T> {
    pub fn new(model: Arc<PackedModel<T>>, slots: u32, budget: u64) -> Result<Self, BackendError> {
        let pack = move |adapter: Arc<HostAdapter>| {
            PackedAdapter::pack(&adapter.header, adapter.data.as_slice(), &model)
        };
        let uploads = Uploads::spawn("lk-cpu-upload", pack)?;
        Ok(Self { table: SlotTable::new(slots), used: 0, budget, uploads })
    }

    /// Reserves the adapter's bytes and queues it.
    pub fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
        bytes: u64,
    ) -> Result<(), BackendError> {
        self.table.check_empty(slot)?;
        if bytes > self.budget - self.used {
            return Err(BackendError::OutOfMemory { what: "memory for adapters", bytes });
        }
        self.uploads.send(slot, adapter, bytes)?;
        self.table.fill(slot, Place { bytes, adapter: None });
        self.used += bytes;
        Ok(())
    }

    /// Takes in what has been packed since the last call.
    pub fn poll(&mut self, done: &mut Vec<UploadDone>) {
        while let Some(Placed { slot, result }) = self.uploads.next_placed() {
            let result = result.and_then(|adapter| {
                let evicted = || refused(slot, "was evicted before its upload ended");
                self.table.get_mut(slot).ok_or_else(evicted)?.adapter = Some(Arc::new(adapter));
                Ok(())
            });
            if result.is_err() {
                self.evict(slot);
            }
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
        let adapter = self.table.get(slot).and_then(|place| place.adapter.as_ref());
        adapter.ok_or_else(|| not_ready(slot))
    }
}
