//! What a test's control plane has been told.

use lorikeet_contract::link::{Ack, AdapterResidency, FinishReason, Hello, UsageKind, UsageRecord};
use std::collections::BTreeMap;

/// What nodes have said.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub hellos: Vec<Hello>,
    pub acks: Vec<Ack>,
    pub revocation_acks: Vec<u64>,
    pub bearers: Vec<String>,
    /// Of the last whole report.
    pub residency: Vec<AdapterResidency>,
    /// By log id.
    pub logs: BTreeMap<String, Log>,
}

/// Records of one log in their order, repeats dropped by position.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub records: Vec<UsageRecord>,
    pub(super) chain: [u8; 32],
}

impl Seen {
    pub fn usage(&self) -> impl Iterator<Item = &UsageRecord> {
        self.logs.values().flat_map(|log| &log.records)
    }

    pub fn finals(&self) -> Vec<UsageRecord> {
        self.usage().filter(|r| r.kind() == UsageKind::Final).cloned().collect()
    }

    pub fn finals_with(&self, reason: FinishReason) -> Vec<UsageRecord> {
        self.finals().into_iter().filter(|r| r.finish_reason() == reason).collect()
    }
}
