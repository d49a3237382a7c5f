//! Moves what lies in the arena: on the stream of the steps, and so after those submitted and before
//! later ones.

use super::arena::Move;
use super::device::{Device, DeviceMemory, DevicePointer, Event, Stream};
use super::error::CudaError;
use crate::backend::{BlockId, BlockMove};
use std::sync::Arc;

/// Extents are moved through memory of this size.
const DETOUR_BYTES: u64 = 32 << 20;

pub struct Mover {
    device: Arc<Device>,
    detour: DeviceMemory,
}

impl Mover {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let detour = device.allocate("device memory for moving adapters", DETOUR_BYTES)?;
        Ok(Self { device: device.clone(), detour })
    }

    /// Moves extents, whose offsets count backwards from `end`. The event follows the last move.
    pub fn extents(
        &self,
        steps: &Stream,
        end: DevicePointer,
        moves: &[Move],
    ) -> Result<Event, CudaError> {
        self.device.bind()?;
        let detour = self.detour.address();
        for &Move { from, to, bytes } in moves {
            // An extent moves towards the end, perhaps onto itself: its last part goes first.
            for moved in (0..bytes).step_by(DETOUR_BYTES as usize) {
                let part = DETOUR_BYTES.min(bytes - moved);
                let (source, target) = (end - from - moved - part, end - to - moved - part);
                // SAFETY: both ranges lie in the arena, and the steps that read them come before or
                // after on this stream. They may overlap, hence the detour.
                unsafe { steps.copy(detour, source, part) }?;
                // SAFETY: as above.
                unsafe { steps.copy(target, detour, part) }?;
            }
        }
        self.mark(steps)
    }

    /// Moves blocks of `page` bytes, the first of which is at `first`. The event follows the last move.
    pub fn blocks(
        &self,
        steps: &Stream,
        first: DevicePointer,
        page: u64,
        moves: &[BlockMove],
    ) -> Result<Event, CudaError> {
        self.device.bind()?;
        let address = |block: BlockId| first + u64::from(block.0) * page;
        for &BlockMove { from, to } in moves {
            // SAFETY: two blocks of the arena; the steps that use them come before or after on this
            // stream.
            unsafe { steps.copy(address(to), address(from), page) }?;
        }
        self.mark(steps)
    }

    fn mark(&self, steps: &Stream) -> Result<Event, CudaError> {
        let event = self.device.event(false)?;
        steps.record(&event)?;
        Ok(event)
    }
}
