//! Adapters on the device: which slot holds which extent, and the thread that fills extents beside
//! the running steps.

use super::arena::{Extents, Move};
use super::device::{Device, DevicePointer, Event, Stream};
use super::error::CudaError;
use super::kernels::{DoraGain, Kernels};
use super::layout::{ExtentLayout, Gain, Group};
use super::weights::DeviceWeights;
use crate::backend::{AdapterSlot, BackendError, HostAdapter, HostBuffer, UploadDone};
use half::{bf16, f16};
use lorikeet_contract::Linear;
use lorikeet_contract::adapter::{Dtype, TensorRef};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Adapters waiting to be copied. When full, an upload is refused and the engine tries again.
const UPLOAD_QUEUE: usize = 64;
/// Pinned memory through which tensors go that are not bf16 yet.
const STAGING: usize = 16 << 20;

/// The device tier: slots over a range of the arena.
pub struct Adapters {
    first: DevicePointer,
    extents: Extents,
    slots: Vec<Option<Entry>>,
    uploading: usize,
    uploads: Option<SyncSender<Upload>>,
    done: Receiver<UploadDone>,
    worker: Option<JoinHandle<()>>,
}

struct Entry {
    generation: u32,
    /// From the start of the range.
    offset: u64,
    is_ready: bool,
}

struct Upload {
    slot: AdapterSlot,
    adapter: Arc<HostAdapter>,
    layout: ExtentLayout,
    address: DevicePointer,
    /// The extent may be written once this has happened on the device.
    after: Option<Event>,
}

impl Adapters {
    /// `first` and `bytes` are the adapters' part of the arena.
    pub fn new(
        device: &Arc<Device>,
        kernels: Arc<Kernels>,
        weights: Arc<DeviceWeights>,
        first: DevicePointer,
        bytes: u64,
        slots: u32,
    ) -> Result<Self, BackendError> {
        let (uploads, queue) = sync_channel::<Upload>(UPLOAD_QUEUE);
        // When full, the worker waits for the engine's next poll.
        let (finished, done) = sync_channel(UPLOAD_QUEUE);
        let device = device.clone();
        let stream = device.stream()?;
        let staging = device.pinned(STAGING)?;
        let mut uploader = Uploader { device, stream, staging, kernels, weights };
        let work = move || {
            for upload in queue {
                let slot = upload.slot;
                let place = AssertUnwindSafe(|| uploader.place(upload));
                let result = catch_unwind(place).unwrap_or_else(|_| {
                    Err(BackendError::Adapter("placing it failed unexpectedly".into()))
                });
                if finished.send(UploadDone { slot, result }).is_err() {
                    return;
                }
            }
        };
        let worker = std::thread::Builder::new()
            .name("lk-cuda-upload".into())
            .spawn(work)
            .map_err(|e| BackendError::Device(format!("the upload thread does not start: {e}")))?;
        Ok(Self {
            first,
            extents: Extents::new(bytes),
            slots: (0..slots).map(|_| None).collect(),
            uploading: 0,
            uploads: Some(uploads),
            done,
            worker: Some(worker),
        })
    }

    /// Reserves an extent and queues the copy. `relocate` moves extents inside the range, after all
    /// submitted steps and before later ones, and gives an event that follows the moves.
    pub fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
        layout: ExtentLayout,
        relocate: impl FnOnce(DevicePointer, &[Move]) -> Result<Event, CudaError>,
    ) -> Result<(), BackendError> {
        let refuse = |what: &str| Err(BackendError::Adapter(format!("{} {what}", name(slot))));
        match self.slots.get(slot.index as usize) {
            None => return refuse("does not exist"),
            Some(Some(_)) => return refuse("is in use: evict it first"),
            Some(None) => {}
        }
        let bytes = layout.bytes;
        let out = || BackendError::OutOfMemory { what: "device memory for adapters", bytes };
        let mut after = None;
        let offset = match self.extents.place(bytes) {
            Some(offset) => offset,
            // Gaps are closed only between uploads: a copy under way keeps its place.
            None if self.uploading == 0 && bytes <= self.extents.free() => {
                let moves = self.extents.compact();
                self.follow(&moves);
                after = Some(relocate(self.first, &moves)?);
                self.extents.place(bytes).ok_or_else(out)?
            }
            None if bytes <= self.extents.free() => return Err(BackendError::NoRoomYet { bytes }),
            None => return Err(out()),
        };
        let Some(uploads) = &self.uploads else { return refuse("cannot be filled any more") };
        let address = self.first + offset;
        match uploads.try_send(Upload { slot, adapter, layout, address, after }) {
            Ok(()) => {}
            Err(error) => {
                self.extents.free_at(offset);
                return match error {
                    TrySendError::Full(_) => Err(BackendError::NoRoomYet { bytes }),
                    TrySendError::Disconnected(_) => {
                        Err(BackendError::Device("the upload thread ended".into()))
                    }
                };
            }
        }
        self.uploading += 1;
        let entry = Entry { generation: slot.generation, offset, is_ready: false };
        self.slots[slot.index as usize] = Some(entry);
        Ok(())
    }

    fn follow(&mut self, moves: &[Move]) {
        // Moves go down in rising order, so no destination is a later move's source.
        for entry in self.slots.iter_mut().flatten() {
            if let Some(moved) = moves.iter().find(|m| m.from == entry.offset) {
                entry.offset = moved.to;
            }
        }
    }

    /// Takes in what has been copied since the last call.
    pub fn poll(&mut self, done: &mut Vec<UploadDone>) {
        while let Ok(UploadDone { slot, result }) = self.done.try_recv() {
            self.uploading -= 1;
            let result = result.and_then(|()| {
                let Some(entry) = self.entry_mut(slot) else {
                    let what = format!("{} was evicted before its upload ended", name(slot));
                    return Err(BackendError::Adapter(what));
                };
                entry.is_ready = true;
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
            self.extents.free_at(entry.offset);
        }
    }

    /// Address of the adapter in a slot; an error when the slot has been given to another one
    /// meanwhile.
    pub fn address(&self, slot: AdapterSlot) -> Result<DevicePointer, BackendError> {
        let entry = self.slots.get(slot.index as usize).and_then(Option::as_ref);
        match entry {
            Some(entry) if entry.generation == slot.generation && entry.is_ready => {
                Ok(self.first + entry.offset)
            }
            _ => Err(BackendError::Adapter(format!("{} holds no ready adapter", name(slot)))),
        }
    }

    fn entry_mut(&mut self, slot: AdapterSlot) -> Option<&mut Entry> {
        let entry = self.slots.get_mut(slot.index as usize)?.as_mut()?;
        (entry.generation == slot.generation).then_some(entry)
    }
}

impl Drop for Adapters {
    fn drop(&mut self) {
        // Closing both channels ends the worker after the adapter it is copying.
        self.uploads = None;
        let (_, closed) = sync_channel(0);
        self.done = closed;
        if let Some(worker) = self.worker.take() {
            // A panic while copying was caught and reported as that upload's result.
            let _ = worker.join();
        }
    }
}

fn name(slot: AdapterSlot) -> String {
    format!("slot {} generation {}", slot.index, slot.generation)
}

/// The upload thread's own things.
struct Uploader {
    device: Arc<Device>,
    stream: Stream,
    staging: super::device::PinnedMemory,
    kernels: Arc<Kernels>,
    weights: Arc<DeviceWeights>,
}

impl Uploader {
    /// Fills an extent, and returns when it can be read.
    fn place(&mut self, upload: Upload) -> Result<(), BackendError> {
        self.device.bind()?;
        if let Some(event) = &upload.after {
            self.stream.wait(event)?;
        }
        let Upload { adapter, layout, address, .. } = &upload;
        let file = adapter.data.as_slice();
        // SAFETY: the extent is reserved for this upload.
        unsafe { self.stream.upload(*address, &layout.table) }?;
        for piece in pieces(layout) {
            match piece {
                Piece::Copy { start, bytes, offset } => {
                    let from = slice(file, start, bytes)?;
                    // SAFETY: as above; `adapter` is held until the copies are done.
                    unsafe { self.stream.upload(address + offset, from) }?;
                }
                Piece::Convert { tensor, offset } => {
                    self.convert(file, tensor, address + offset)?
                }
            }
        }
        for gain in &layout.gains {
            self.gain(file, gain, *address)?;
        }
        self.stream.synchronize()?;
        Ok(())
    }

    /// Copies a tensor that is not bf16 yet.
    fn convert(
        &mut self,
        file: &[u8],
        tensor: TensorRef,
        address: DevicePointer,
    ) -> Result<(), BackendError> {
        let bytes = slice(file, tensor.offset, tensor.bytes)?;
        let size = tensor.dtype.size();
        let values = STAGING / 2;
        for (index, part) in bytes.chunks(values * size).enumerate() {
            // The staging memory's last copy must be done before it is filled anew.
            self.stream.synchronize()?;
            let out = &mut bytemuck::cast_slice_mut::<u8, bf16>(self.staging.as_mut_slice())
                [..part.len() / size];
            to_bf16(tensor.dtype, part, out);
            let to = address + (index * values * 2) as u64;
            let out = bytemuck::cast_slice::<u8, bf16>(self.staging.as_slice());
            // SAFETY: the extent is reserved for this upload.
            unsafe { self.stream.upload(to, &out[..part.len() / size]) }?;
        }
        Ok(())
    }

    /// DoRA: the magnitudes go where the gains will be, and are divided there.
    fn gain(
        &mut self,
        file: &[u8],
        gain: &Gain,
        extent: DevicePointer,
    ) -> Result<(), BackendError> {
        let bytes = slice(file, gain.magnitude.offset, gain.magnitude.bytes)?;
        let magnitudes = to_f32(gain.magnitude.dtype, bytes);
        let place = extent + gain.module.gain;
        // SAFETY: the extent is reserved for this upload, and pageable memory is copied at once.
        unsafe { self.stream.upload(place, &magnitudes) }?;
        let spec = &self.weights.config.spec;
        let (outputs, inputs) = spec.shape(gain.linear);
        let group = group_of(gain.linear);
        let first = u64::from(group.first_output(spec, gain.linear)) * inputs as u64 * 2;
        let arguments = DoraGain {
            w: self.weights.layers[gain.layer as usize].group(group) + first,
            a: extent + gain.a,
            b: extent + gain.module.b,
            magnitude: place,
            gain: place,
            outputs: outputs as u32,
            inputs: inputs as u32,
            rank: gain.module.rank,
            scale: gain.module.scale,
        };
        let blocks = (outputs as u32).div_ceil(8);
        // SAFETY: A and B were copied before on this stream; each output is read and written by one
        // thread.
        unsafe { self.kernels.launch(&self.stream, blocks, &arguments) }?;
        Ok(())
    }
}

fn group_of(linear: Linear) -> Group {
    match linear {
        Linear::QProj | Linear::KProj | Linear::VProj => Group::Qkv,
        Linear::OProj => Group::Output,
        Linear::GateProj | Linear::UpProj => Group::GateUp,
        Linear::DownProj => Group::Down,
    }
}

pub enum Piece {
    Copy { start: u64, bytes: u64, offset: u64 },
    Convert { tensor: TensorRef, offset: u64 },
}

/// Neighbouring bf16 tensors with the same spacing in file and extent become one copy.
pub fn pieces(layout: &ExtentLayout) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for placed in &layout.tensors {
        let tensor = placed.tensor;
        if tensor.dtype != Dtype::BF16 {
            pieces.push(Piece::Convert { tensor, offset: placed.offset });
            continue;
        }
        if let Some(Piece::Copy { start, bytes, offset }) = pieces.last_mut()
            && tensor.offset >= *start
            && tensor.offset - *start == placed.offset - *offset
            // What lies between is padding, not another tensor.
            && tensor.offset - *start - *bytes < super::layout::TENSOR_ALIGN
        {
            *bytes = tensor.offset + tensor.bytes - *start;
            continue;
        }
        let (start, bytes) = (tensor.offset, tensor.bytes);
        pieces.push(Piece::Copy { start, bytes, offset: placed.offset });
    }
    pieces
}

fn slice(file: &[u8], start: u64, bytes: u64) -> Result<&[u8], BackendError> {
    let range = usize::try_from(start).ok().and_then(|start| {
        let end = start.checked_add(usize::try_from(bytes).ok()?)?;
        file.get(start..end)
    });
    range.ok_or_else(|| BackendError::Adapter("a tensor lies outside the file".into()))
}

fn to_bf16(dtype: Dtype, bytes: &[u8], out: &mut [bf16]) {
    match dtype {
        Dtype::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = bf16::from_f32(f32::from_le_bytes(*b));
            }
        }
        Dtype::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = bf16::from_f32(f16::from_le_bytes(*b).to_f32());
            }
        }
        Dtype::BF16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = bf16::from_le_bytes(*b);
            }
        }
    }
}

pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => {
            bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
        }
    }
}
