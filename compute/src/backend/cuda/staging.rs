//! Weights to the device, from where they lie, perhaps in a mapped file: several threads read them into
//! page-locked memory, from which the device takes them meanwhile. One thread reads the page cache at
//! a few GB/s; the bus takes fifty.

use super::device::{Device, DevicePointer, Event, PinnedMemory, Stream};
use super::error::CudaError;
use crate::backend::HostBuffer;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// More do not read faster than the bus takes it.
const MOST_LANES: usize = 8;
/// Large enough for the bus, small enough that all lanes have a part of a matrix.
const CHUNK: usize = 4 << 20;

/// Host memory, and its place on the device.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub to: DevicePointer,
    pub from: &'a [u8],
}

pub struct Staging {
    device: Arc<Device>,
    lanes: Vec<Lane>,
}

/// What one thread copies with: it fills a chunk while the other one is on its way.
struct Lane {
    stream: Stream,
    chunks: [Chunk; 2],
}

struct Chunk {
    memory: PinnedMemory,
    copied: Event,
}

impl Staging {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let lanes = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_LANES);
        let lanes = (0..lanes).map(|_| Lane::new(device)).collect::<Result<_, _>>()?;
        Ok(Self { device: device.clone(), lanes })
    }

    /// Copies everything; returns when it is there.
    ///
    /// # Safety
    /// Every place has room for its source, and no work under way uses it.
    pub unsafe fn upload(&mut self, sources: &[Source<'_>]) -> Result<(), CudaError> {
        let pieces: Vec<Source<'_>> = sources.iter().flat_map(pieces).collect();
        let next = AtomicUsize::new(0);
        let (device, pieces, next) = (&self.device, &pieces, &next);
        thread::scope(|scope| {
            let copy = |lane: &mut Lane| {
                device.bind()?;
                // SAFETY: forwarded from the caller; each piece is one lane's.
                unsafe { lane.copy(pieces, next) }
            };
            let lanes = self.lanes.iter_mut().map(|lane| scope.spawn(move || copy(lane)));
            let lanes: Vec<_> = lanes.collect();
            let ends =
                lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|p| resume_unwind(p)));
            // All have ended before the first error is told.
            ends.collect::<Vec<_>>().into_iter().collect()
        })
    }
}

fn pieces<'a>(source: &Source<'a>) -> impl Iterator<Item = Source<'a>> {
    let to = source.to;
    let at = move |index: usize| to + (index * CHUNK) as u64;
    let chunks = source.from.chunks(CHUNK).enumerate();
    chunks.map(move |(index, from)| Source { to: at(index), from })
}

impl Lane {
    fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let chunk = || {
            Ok::<_, CudaError>(Chunk {
                memory: device.pinned(CHUNK)?,
                copied: device.event(false)?,
            })
        };
        Ok(Self { stream: device.stream()?, chunks: [chunk()?, chunk()?] })
    }

    /// Copies pieces that no other lane has taken.
    ///
    /// # Safety
    /// As [`Staging::upload`].
    unsafe fn copy(&mut self, pieces: &[Source<'_>], next: &AtomicUsize) -> Result<(), CudaError> {
        let mut turn = 0;
        while let Some(&Source { to, from }) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let chunk = &mut self.chunks[turn % 2];
            turn += 1;
            // Nothing has been recorded the first time: there is nothing to wait for.
            chunk.copied.synchronize()?;
            let staged = &mut chunk.memory.as_mut_slice()[..from.len()];
            staged.copy_from_slice(from);
            // SAFETY: there is room, says the caller; the chunk is filled anew after the event alone.
            unsafe { self.stream.upload(to, staged) }?;
            self.stream.record(&chunk.copied)?;
        }
        self.stream.synchronize()
    }
}
