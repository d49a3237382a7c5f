//! How those who need an adapter stand.

use crate::adapters::AdapterKey;
use std::collections::HashMap;

/// Of one adapter's sequences together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// What its tenant has been served, by weight. Who has less comes first.
    pub served: u64,
    /// Some sequence would run if the adapter were on the device: it holds blocks, or would be
    /// given some.
    pub can_run: bool,
}

impl Claim {
    pub(super) fn of(key: &AdapterKey, claims: &Claims) -> Self {
        claims.get(key).copied().unwrap_or_default()
    }
}

/// Of every adapter that sequences need.
pub type Claims = HashMap<AdapterKey, Claim>;

/// An adapter without a claim is taken to be needed by somebody new.
impl Default for Claim {
    fn default() -> Self {
        Self { served: 0, can_run: true }
    }
}
