//! Where a node says its adapters are: put together from its messages, and stored as operators'
//! pages read it.

use lorikeet_contract::link::{AdapterResidency, ResidencyReport, Tier, TierUsage};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Adapters listed in one stored report. The tiers' counts and sums are always whole.
const MAX_LISTED: usize = 2000;

/// Characters of a text from a node.
const MAX_TEXT: usize = 300;

/// A report as far as it has come.
#[derive(Debug, Default)]
pub struct Residency {
    tiers: Vec<TierUsage>,
    /// By tier.
    counts: BTreeMap<i32, u64>,
    /// The first in the order in which operators want them.
    listed: Vec<AdapterResidency>,
}

impl Residency {
    /// Takes a message in; the report when it is whole.
    pub fn take(&mut self, part: ResidencyReport) -> Option<Value> {
        self.tiers.extend(part.tiers);
        for adapter in &part.adapters {
            *self.counts.entry(adapter.tier).or_default() += 1;
        }
        self.listed.extend(part.adapters);
        self.listed.sort_by_key(rank);
        self.listed.truncate(MAX_LISTED);
        if part.more {
            return None;
        }
        Some(std::mem::take(self).stored())
    }

    fn stored(self) -> Value {
        let adapters: Vec<_> = self
            .listed
            .iter()
            .map(|a| {
                json!({
                    "tenant_id": printable(&a.tenant_id),
                    "digest": hex::encode(&a.digest),
                    "tier": name(a.tier),
                    "bytes": a.bytes,
                    "error": printable(&a.error),
                    "pinned": a.pinned,
                    "pin_refusal": printable(&a.pin_refusal),
                })
            })
            .collect();
        let tiers: Vec<_> = self
            .tiers
            .iter()
            .map(|t| {
                json!({
                    "tier": name(t.tier),
                    "adapters": self.counts.get(&t.tier).copied().unwrap_or_default(),
                    "used_bytes": t.used_bytes,
                    "capacity_bytes": t.capacity_bytes,
                })
            })
            .collect();
        let total: u64 = self.counts.values().sum();
        json!({ "adapters": adapters, "adapters_total": total, "tiers": tiers })
    }
}

/// What somebody may have to look at first, then the faster tiers.
fn rank(adapter: &AdapterResidency) -> (bool, u8) {
    let tier = match Tier::try_from(adapter.tier).unwrap_or_default() {
        Tier::Failed => 0,
        Tier::Device => 1,
        Tier::Host => 2,
        Tier::Fetching => 3,
        Tier::Disk => 4,
        Tier::Absent | Tier::Unspecified => 5,
    };
    (!adapter.pinned, tier)
}

fn name(tier: i32) -> String {
    let name = Tier::try_from(tier).unwrap_or_default().as_str_name();
    name.trim_start_matches("TIER_").to_lowercase()
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapters(tier: Tier, count: usize) -> Vec<AdapterResidency> {
        vec![AdapterResidency { tier: tier as i32, ..Default::default() }; count]
    }

    #[test]
    fn a_report_in_parts_is_stored_once_whole_with_counts_beyond_what_is_listed() {
        let usage = TierUsage { tier: Tier::Disk as i32, used_bytes: 7, capacity_bytes: 9 };
        let device = TierUsage { tier: Tier::Device as i32, ..usage };
        let mut residency = Residency::default();
        let first = ResidencyReport {
            adapters: adapters(Tier::Disk, 1500),
            tiers: vec![usage, device],
            more: true,
        };
        assert_eq!(residency.take(first), None);
        let mut adapters = [adapters(Tier::Disk, 1500), adapters(Tier::Device, 3)].concat();
        adapters[0].pinned = true;
        let last = ResidencyReport { adapters, ..Default::default() };
        let stored = residency.take(last).expect("whole");
        assert_eq!(stored["adapters_total"], 3003);
        let listed = stored["adapters"].as_array().unwrap();
        assert_eq!(listed.len(), MAX_LISTED);
        assert!(listed[0]["pinned"] == true && listed[1]["tier"] == "device");
        assert_eq!(stored["tiers"][0]["adapters"], 3000);
        assert_eq!(stored["tiers"][1]["adapters"], 3);
        let next = residency.take(ResidencyReport::default()).expect("whole");
        assert_eq!(next["adapters_total"], 0, "nothing is left of the one before");
    }
}
