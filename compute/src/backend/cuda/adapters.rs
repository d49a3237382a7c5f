//! Adapters on the device: which slot holds which extent, and the thread that fills extents beside
//! the running steps.

use super::arena::{Extents, Move};
use super::device::{Device, DevicePointer, Event, Stream};
use super::kernels::{DoraGain, Kernels, Start};
use super::layout::{ExtentLayout, Gain, Group};
use super::moving::Mover;
use super::weights::{DeviceWeights, Precision};
use crate::backend::slots::{SlotTable, not_ready, refused};
use crate::backend::uploads::{Placed, Uploads};
use crate::backend::{AdapterSlot, BackendError, HostAdapter, HostBuffer, UploadDone};
use half::{bf16, f16};
use lorikeet_contract::adapter::{Dtype, TensorRef};
use std::sync::Arc;

/// Pinned memory through which tensors go that are not bf16 yet.
const STAGING: usize = 16 << 20;

/// Copied at a time. Steps copy, too, and take turns with an adapter at the device's copy engines.
const CHUNK: usize = 8 << 20;

/// The device tier: slots over the arena's part beyond the border.
pub struct Adapters {
    /// Of the arena.
    end: DevicePointer,
    extents: Extents,
    table: SlotTable<Place>,
    uploading: usize,
    uploads: Uploads<Upload, ()>,
    /// Extents may be written once this has happened on the device.
    settled: Option<Arc<Event>>,
}

struct Place {
    /// From the extent's end to the arena's.
    offset: u64,
    bytes: u64,
    is_ready: bool,
}

struct Upload {
    adapter: Arc<HostAdapter>,
    layout: ExtentLayout,
    address: DevicePointer,
    /// As [`Adapters::settled`].
    after: Option<Arc<Event>>,
}

impl Adapters {
    /// The adapters' part of the arena is the `bytes` before its `end`.
    pub fn new(
        device: &Arc<Device>,
        kernels: Arc<Kernels>,
        weights: Arc<DeviceWeights>,
        end: DevicePointer,
        bytes: u64,
        slots: u32,
    ) -> Result<Self, BackendError> {
        let device = device.clone();
        let stream = device.stream()?;
        let staging = device.pinned(STAGING)?;
        let mut uploader = Uploader { device, stream, staging, kernels, weights };
        Ok(Self {
            end,
            extents: Extents::new(bytes),
            table: SlotTable::new(slots),
            uploading: 0,
            uploads: Uploads::spawn("lk-cuda-upload", move |upload| uploader.place(upload))?,
            settled: None,
        })
    }

    /// Reserves an extent and queues the copy. Where there is no gap for it, others move between the
    /// `steps`.
    pub fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
        layout: ExtentLayout,
        steps: &Stream,
        mover: &Mover,
    ) -> Result<(), BackendError> {
        self.table.check_empty(slot)?;
        let bytes = layout.bytes;
        let out = || BackendError::OutOfMemory { what: "device memory for adapters", bytes };
        let offset = match self.extents.place(bytes) {
            Some(offset) => offset,
            None if bytes > self.extents.free() => return Err(out()),
            None => {
                self.gather(bytes, steps, mover)?;
                self.extents.place(bytes).ok_or_else(out)?
            }
        };
        let place = Place { offset, bytes, is_ready: false };
        let (address, after) = (self.address_of(&place), self.settled.clone());
        let upload = Upload { adapter, layout, address, after };
        if let Err(error) = self.uploads.send(slot, upload, bytes) {
            self.extents.free_at(offset);
            return Err(error);
        }
        self.uploading += 1;
        self.table.fill(slot, place);
        Ok(())
    }

    /// Moves the border to `bytes` before the arena's end. Extents that lie beyond move between the
    /// `steps`; an error when they do not fit.
    pub fn set_bytes(
        &mut self,
        bytes: u64,
        steps: &Stream,
        mover: &Mover,
    ) -> Result<(), BackendError> {
        if self.extents.set_bytes(bytes) {
            return Ok(());
        }
        self.gather(self.extents.bytes().saturating_sub(bytes), steps, mover)?;
        let full = || BackendError::Device(format!("adapters do not fit {bytes} bytes"));
        self.extents.set_bytes(bytes).then_some(()).ok_or_else(full)
    }

    /// Extents are written when the device has come to this event.
    pub fn settle(&mut self, event: Event) {
        self.settled = Some(Arc::new(event));
    }

    /// Closes gaps until so many bytes are free at the border. Only between uploads: a copy under way
    /// keeps its place.
    fn gather(&mut self, bytes: u64, steps: &Stream, mover: &Mover) -> Result<(), BackendError> {
        if self.uploading > 0 {
            return Err(BackendError::NoRoomYet { bytes });
        }
        let moves = self.extents.gather(bytes);
        self.follow(&moves);
        let moved = mover.extents(steps, self.end, &moves)?;
        self.settle(moved);
        Ok(())
    }

    fn address_of(&self, place: &Place) -> DevicePointer {
        self.end - place.offset - place.bytes
    }

    fn follow(&mut self, moves: &[Move]) {
        // Moves go down in rising order, so no destination is a later move's source.
        for place in self.table.places_mut() {
            if let Some(moved) = moves.iter().find(|m| m.from == place.offset) {
                place.offset = moved.to;
            }
        }
    }

    /// Takes in what has been copied since the last call.
    pub fn poll(&mut self, done: &mut Vec<UploadDone>) {
        while let Some(Placed { slot, result }) = self.uploads.next_placed() {
            self.uploading -= 1;
            let result = result.and_then(|()| {
                let evicted = || refused(slot, "was evicted before its upload ended");
                self.table.get_mut(slot).ok_or_else(evicted)?.is_ready = true;
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
            self.extents.free_at(place.offset);
        }
    }

    /// Address of the adapter in a slot; an error when the slot has been given to another one
    /// meanwhile.
    pub fn address(&self, slot: AdapterSlot) -> Result<DevicePointer, BackendError> {
        match self.table.get(slot) {
            Some(place) if place.is_ready => Ok(self.address_of(place)),
            _ => Err(not_ready(slot)),
        }
    }
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
    /// Fills an extent, and returns when it can be read, or is written no more.
    fn place(&mut self, upload: Upload) -> Result<(), BackendError> {
        self.device.bind()?;
        let filled = self.fill(upload);
        self.stream.synchronize()?;
        filled
    }

    fn fill(&mut self, upload: Upload) -> Result<(), BackendError> {
        if let Some(event) = &upload.after {
            self.stream.wait(event)?;
        }
        let Upload { adapter, layout, address, .. } = &upload;
        let file = adapter.file()?;
        // SAFETY: the extent is reserved for this upload.
        unsafe { self.stream.upload(*address, &layout.table) }?;
        for piece in pieces(layout) {
            match piece {
                Piece::Copy { start, bytes, offset } => {
                    let range = start as usize..(start + bytes) as usize;
                    let from = file.get(range).ok_or_else(outside)?;
                    for (index, part) in from.chunks(CHUNK).enumerate() {
                        let to = address + offset + (index * CHUNK) as u64;
                        // SAFETY: as above; `adapter` is held until the copies are done.
                        unsafe { self.stream.upload(to, part) }?;
                        self.stream.synchronize()?;
                    }
                }
                Piece::Convert { tensor, offset } => {
                    self.convert(file, tensor, address + offset)?
                }
            }
        }
        for gain in &layout.gains {
            self.gain(file, gain, *address)?;
        }
        Ok(())
    }

    /// Copies a tensor that is not bf16 yet.
    fn convert(
        &mut self,
        file: &[u8],
        tensor: TensorRef,
        address: DevicePointer,
    ) -> Result<(), BackendError> {
        let bytes = tensor.bytes_in(file).ok_or_else(outside)?;
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
        let bytes = gain.magnitude.bytes_in(file).ok_or_else(outside)?;
        let magnitudes = gain.magnitude.dtype.to_f32(bytes);
        let place = extent + gain.module.gain;
        // SAFETY: the extent is reserved for this upload, and pageable memory is copied at once.
        unsafe { self.stream.upload(place, &magnitudes) }?;
        let spec = &self.weights.config.spec;
        let (outputs, inputs) = spec.shape(gain.linear);
        let group = Group::of(gain.linear);
        let layer = &self.weights.layers[gain.layer as usize];
        let first = u64::from(group.first_output(spec, gain.linear));
        let bytes = self.weights.precision.bytes();
        let w_scales = match self.weights.precision {
            Precision::Bf16 => 0,
            Precision::Fp8 => layer.scales(group) + first * 4,
        };
        let arguments = DoraGain {
            w: layer.group(group) + first * inputs as u64 * bytes,
            w_scales,
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
        unsafe { self.kernels.launch(&self.stream, Start::Afterwards, blocks, &arguments) }?;
        Ok(())
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

fn outside() -> BackendError {
    BackendError::Adapter("a tensor lies outside the file".into())
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
