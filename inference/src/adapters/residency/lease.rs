//! Proofs that an adapter is needed, or read, held by those who need or read it.

use lorikeet_compute::backend::AdapterSlot;
use std::sync::Arc;
use std::time::Instant;

/// An adapter's place on the device and the time from which it could be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub slot: AdapterSlot,
    pub since: Instant,
}

/// Keeps an adapter in its slot. One for each row of a submitted step, dropped when the step has
/// been collected.
#[derive(Debug, Clone)]
pub struct AdapterLease(Arc<Placed>);

impl AdapterLease {
    pub(super) fn new(slot: AdapterSlot, since: Instant) -> Self {
        Self(Arc::new(Placed { slot, since }))
    }

    pub fn slot(&self) -> AdapterSlot {
        self.0.slot
    }

    /// When the adapter's upload had finished.
    pub fn since(&self) -> Instant {
        self.0.since
    }

    /// True when somebody beside this one holds it.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Says that a sequence needs an adapter, from its submission to its end. While one is held the
/// adapter is loaded, and rotated back in when it had to give way.
#[derive(Debug, Clone, Default)]
pub struct AdapterDemand(Arc<()>);

impl AdapterDemand {
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}
