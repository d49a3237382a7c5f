//! Page-locked memory for adapters. Allocating it costs half a millisecond for each MiB, so it is
//! taken in large regions, the first of them when the node starts, and kept.

use super::arena::Extents;
use super::device::{Device, PinnedMemory};
use super::error::CudaError;
use crate::backend::{BackendError, HostAllocator, HostBuffer};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A region, unless one adapter needs more.
const REGION: u64 = 1 << 30;

/// Hands out parts of regions.
#[derive(Clone)]
pub struct PinnedPool(Arc<Shared>);

struct Shared {
    device: Arc<Device>,
    regions: Mutex<Vec<Region>>,
}

struct Region {
    memory: Arc<PinnedMemory>,
    extents: Extents,
}

impl Shared {
    fn regions(&self) -> MutexGuard<'_, Vec<Region>> {
        // Nothing in here panics half way through a change.
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, bytes: u64) -> Result<(), CudaError> {
        self.device.bind()?;
        let memory = Arc::new(self.device.pinned(bytes as usize)?);
        self.regions().push(Region { memory, extents: Extents::new(bytes) });
        Ok(())
    }

    fn place(self: &Arc<Self>, bytes: usize) -> Option<PinnedPart> {
        let mut regions = self.regions();
        for region in regions.iter_mut() {
            if let Some(start) = region.extents.place((bytes as u64).max(1)) {
                let memory = region.memory.clone();
                return Some(PinnedPart { shared: self.clone(), memory, start, bytes });
            }
        }
        None
    }
}

impl PinnedPool {
    /// `bytes` are made ready beside the rest of the start; more follow when they are asked for.
    pub fn new(device: &Arc<Device>, bytes: u64) -> Self {
        let shared = Arc::new(Shared { device: device.clone(), regions: Mutex::default() });
        let later = Arc::downgrade(&shared);
        let grow = move || {
            for _ in 0..bytes.div_ceil(REGION) {
                let Some(shared) = later.upgrade() else { return };
                if let Err(error) = shared.grow(REGION) {
                    tracing::warn!(%error, "pinned memory for adapters was not made ready");
                    return;
                }
            }
        };
        // Without the thread the first adapters wait for their memory instead.
        if let Err(error) = std::thread::Builder::new().name("lk-cuda-pin".into()).spawn(grow) {
            tracing::warn!(%error, "pinned memory for adapters was not made ready");
        }
        Self(shared)
    }
}

impl HostAllocator for PinnedPool {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBuffer>, BackendError> {
        loop {
            if let Some(part) = self.0.place(bytes) {
                return Ok(Box::new(part));
            }
            let size = (bytes as u64).next_multiple_of(super::arena::EXTENT_ALIGN);
            self.0.grow(size.max(REGION))?;
        }
    }
}

/// An adapter's bytes; the region has them back when it is dropped. What an earlier adapter left is
/// overwritten by the file, whose size this has.
struct PinnedPart {
    shared: Arc<Shared>,
    memory: Arc<PinnedMemory>,
    start: u64,
    bytes: usize,
}

impl HostBuffer for PinnedPart {
    fn as_slice(&self) -> &[u8] {
        // SAFETY: the extent lies in the region, which lives as long as `memory`, and is this part's
        // alone.
        unsafe { self.memory.part(self.start as usize, self.bytes) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { self.memory.part_mut(self.start as usize, self.bytes) }
    }
}

impl Drop for PinnedPart {
    fn drop(&mut self) {
        let mut regions = self.shared.regions();
        let own = regions.iter_mut().find(|region| Arc::ptr_eq(&region.memory, &self.memory));
        own.into_iter().for_each(|region| region.extents.free_at(self.start));
    }
}
