//! What requests are checked against, swapped whole when it changes.

use super::denied::DenySet;
use super::view::ManifestView;
use crate::durable::unix_ms;
use lorikeet_contract::rate::RateShare;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// One moment's truth. A request keeps the one it began with.
#[derive(Debug, Clone, Default)]
pub struct Current {
    pub view: Arc<ManifestView>,
    pub denied: Arc<DenySet>,
    /// False until a first manifest was applied, or read from the disk.
    pub applied: bool,
    /// Of the view; 0 while there is none.
    pub revision: u64,
    /// This node's part of every tenant's rate limits.
    pub rate_share: RateShare,
}

#[derive(Debug, Default)]
pub struct Manifest {
    current: RwLock<Arc<Current>>,
    /// 0: not since the start of this process.
    contact_unix_ms: AtomicI64,
}

impl Manifest {
    pub fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn swap(&self, current: Current) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
    }

    pub(super) fn note_contact(&self) {
        self.contact_unix_ms.store(unix_ms(), Ordering::Relaxed);
    }

    /// Since the control plane was last heard; None when this process has not heard it at all.
    pub fn staleness(&self) -> Option<Duration> {
        let contact = self.contact_unix_ms.load(Ordering::Relaxed);
        let age = u64::try_from(unix_ms() - contact).unwrap_or(0);
        (contact != 0).then_some(Duration::from_millis(age))
    }
}
