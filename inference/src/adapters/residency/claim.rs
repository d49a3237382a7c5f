//! How those who need an adapter stand.

use crate::adapters::AdapterKey;
use std::collections::HashMap;

/// Of one adapter's sequences together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// What its tenant has been served, by weight. Who has less comes first.
    pub served: u64,
    /// Sequences that would run if the adapter were on the device: they hold blocks, or would be
    /// given some.
    pub runnable: u32,
    /// One of them waits for its first token, and there are blocks for it.
    pub is_new: bool,
}

impl Claim {
    /// One more sequence would run.
    pub fn add(&mut self, is_new: bool) {
        self.runnable += 1;
        self.is_new |= is_new;
    }

    pub(super) fn can_run(self) -> bool {
        self.runnable > 0
    }

    pub(super) fn of(key: &AdapterKey, claims: &Claims) -> Self {
        claims.get(key).copied().unwrap_or_default()
    }
}

/// Of every adapter that sequences need.
pub type Claims = HashMap<AdapterKey, Claim>;

/// Of an adapter that no sequence needs: a pin, which comes before all.
impl Default for Claim {
    fn default() -> Self {
        Self { served: 0, runnable: 1, is_new: false }
    }
}
