//! What operators see of where adapters are.

use crate::adapters::{AdapterReport, ResidencyReport, ResidencyState, TierUse};
use lorikeet_contract::link::{self, AdapterResidency, Tier, TierUsage};

pub fn to_proto(report: &ResidencyReport) -> link::ResidencyReport {
    let tier = |tier: Tier, use_: TierUse| TierUsage {
        tier: tier as i32,
        used_bytes: use_.used,
        capacity_bytes: use_.capacity,
    };
    link::ResidencyReport {
        adapters: report.adapters.iter().filter_map(adapter).collect(),
        tiers: vec![
            tier(Tier::Disk, report.disk),
            tier(Tier::Host, report.host),
            tier(Tier::Device, report.device),
        ],
        more: false,
    }
}

/// None for an adapter that is nowhere.
fn adapter(report: &AdapterReport) -> Option<AdapterResidency> {
    let (tier, error) = match &report.state {
        ResidencyState::Absent => return None,
        ResidencyState::Fetching => (Tier::Fetching, String::new()),
        ResidencyState::Disk => (Tier::Disk, String::new()),
        ResidencyState::Host => (Tier::Host, String::new()),
        ResidencyState::Device { .. } => (Tier::Device, String::new()),
        ResidencyState::Failed { reason, .. } => (Tier::Failed, reason.clone()),
    };
    Some(AdapterResidency {
        tenant_id: report.key.tenant.to_string(),
        digest: report.key.digest.0.to_vec(),
        tier: tier as i32,
        error,
        ..AdapterResidency::default()
    })
}
