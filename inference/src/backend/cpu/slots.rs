//! Which adapter is in which slot, and the thread that packs adapters beside the running steps.

use super::adapter::{self, PackedAdapter};
use super::element::Element;
use super::model::PackedModel;
use crate::backend::{AdapterSlot, BackendError, HostAdapter, UploadDone};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Adapters waiting to be packed. When full, an upload is refused and the engine tries again.
const UPLOAD_QUEUE: usize = 64;

/// The device tier: a budget of bytes of packed adapters.
pub struct Slots<T> {
    slots: Vec<Option<Entry<T>>>,
    /// Bytes of all entries, being uploaded or ready; at most `budget`.
    used: u64,
    budget: u64,
    uploads: Option<SyncSender<Upload>>,
    packed: Receiver<PackedUpload<T>>,
    worker: Option<JoinHandle<()>>,
}

struct Entry<T> {
    generation: u32,
    bytes: u64,
    state: State<T>,
}

enum State<T> {
    Uploading,
    Ready(Arc<PackedAdapter<T>>),
}

struct Upload {
    slot: AdapterSlot,
    adapter: Arc<HostAdapter>,
}

struct PackedUpload<T> {
    slot: AdapterSlot,
    result: Result<PackedAdapter<T>, BackendError>,
}

impl<T: Element> Slots<T> {
    pub fn new(model: Arc<PackedModel<T>>, slots: u32, budget: u64) -> std::io::Result<Self> {
        let (uploads, queue) = sync_channel::<Upload>(UPLOAD_QUEUE);
        // When full, the worker waits for the engine's next poll.
        let (done, packed) = sync_channel(UPLOAD_QUEUE);
        let work = move || {
            for Upload { slot, adapter } in queue {
                let result = pack(&adapter, &model);
                if done.send(PackedUpload { slot, result }).is_err() {
                    return;
                }
            }
        };
        let worker = std::thread::Builder::new().name("lk-cpu-upload".into()).spawn(work)?;
        Ok(Self {
            slots: (0..slots).map(|_| None).collect(),
            used: 0,
            budget,
            uploads: Some(uploads),
            packed,
            worker: Some(worker),
        })
    }

    /// Reserves the adapter's bytes and queues it.
    pub fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
        bytes: u64,
    ) -> Result<(), BackendError> {
        let refuse = |what: &str| Err(BackendError::Adapter(format!("{} {what}", name(slot))));
        match self.slots.get(slot.index as usize) {
            None => return refuse("does not exist"),
            Some(Some(_)) => return refuse("is in use: evict it first"),
            Some(None) => {}
        }
        if bytes > self.budget - self.used {
            return Err(BackendError::OutOfMemory { what: "memory for adapters", bytes });
        }
        let Some(uploads) = &self.uploads else { return refuse("cannot be filled any more") };
        match uploads.try_send(Upload { slot, adapter }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return refuse("must wait: too many uploads are queued"),
            Err(TrySendError::Disconnected(_)) => {
                return Err(BackendError::Device("the upload thread ended".into()));
            }
        }
        let entry = Entry { generation: slot.generation, bytes, state: State::Uploading };
        self.slots[slot.index as usize] = Some(entry);
        self.used += bytes;
        Ok(())
    }

    /// Takes in what has been packed since the last call.
    pub fn poll(&mut self, done: &mut Vec<UploadDone>) {
        while let Ok(PackedUpload { slot, result }) = self.packed.try_recv() {
            let result = result.and_then(|adapter| {
                let Some(entry) = self.entry_mut(slot) else {
                    let what = format!("{} was evicted before its upload ended", name(slot));
                    return Err(BackendError::Adapter(what));
                };
                entry.state = State::Ready(Arc::new(adapter));
                Ok(())
            });
            if result.is_err() {
                self.evict(slot);
            }
            done.push(UploadDone { slot, result });
        }
    }

    pub fn evict(&mut self, slot: AdapterSlot) {
        if self.entry_mut(slot).is_none() {
            return;
        }
        if let Some(entry) = self.slots[slot.index as usize].take() {
            self.used -= entry.bytes;
        }
    }

    /// The adapter in a slot; an error when the slot has been given to another one meanwhile.
    pub fn get(&self, slot: AdapterSlot) -> Result<&Arc<PackedAdapter<T>>, BackendError> {
        let entry = self.slots.get(slot.index as usize).and_then(Option::as_ref);
        match entry {
            Some(Entry { generation, state: State::Ready(adapter), .. })
                if *generation == slot.generation =>
            {
                Ok(adapter)
            }
            _ => Err(BackendError::Adapter(format!("{} holds no ready adapter", name(slot)))),
        }
    }

    fn entry_mut(&mut self, slot: AdapterSlot) -> Option<&mut Entry<T>> {
        let entry = self.slots.get_mut(slot.index as usize)?.as_mut()?;
        (entry.generation == slot.generation).then_some(entry)
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        // Closing both channels ends the worker after the adapter it is packing.
        self.uploads = None;
        let (_, closed) = sync_channel(0);
        self.packed = closed;
        if let Some(worker) = self.worker.take() {
            // A panic while packing was caught and reported as that upload's result.
            let _ = worker.join();
        }
    }
}

fn pack<T: Element>(
    adapter: &HostAdapter,
    model: &PackedModel<T>,
) -> Result<PackedAdapter<T>, BackendError> {
    adapter::check(&adapter.header, &model.spec)?;
    let pack = || PackedAdapter::pack(&adapter.header, adapter.data.as_slice(), model);
    catch_unwind(AssertUnwindSafe(pack))
        .unwrap_or_else(|_| Err(BackendError::Adapter("packing it failed unexpectedly".into())))
}

fn name(slot: AdapterSlot) -> String {
    format!("slot {} generation {}", slot.index, slot.generation)
}
