//! What operators see of where adapters are.

use crate::adapters::{AdapterReport, PinState, ResidencyReport, ResidencyState, TierUse};
use lorikeet_contract::link::{self, AdapterResidency, Tier, TierUsage};
use prost::Message;

/// Bytes of adapters in one message, well below what either end accepts.
const MESSAGE_BYTES: usize = 1 << 20;

/// Characters of a reason.
const MAX_REASON: usize = 300;

/// A report in as many messages as it takes. All but the last say that there is `more`.
pub fn to_messages(report: &ResidencyReport) -> Vec<link::ResidencyReport> {
    let tier = |tier: Tier, use_: TierUse| TierUsage {
        tier: tier as i32,
        used_bytes: use_.used,
        capacity_bytes: use_.capacity,
    };
    let tiers = vec![
        tier(Tier::Disk, report.disk),
        tier(Tier::Host, report.host),
        tier(Tier::Device, report.device),
    ];
    let mut messages = vec![link::ResidencyReport { tiers, ..Default::default() }];
    let mut room = MESSAGE_BYTES;
    for adapter in report.adapters.iter().filter_map(adapter) {
        // With its field's key and length.
        let bytes = adapter.encoded_len() + 6;
        if bytes > room {
            messages.push(link::ResidencyReport::default());
            room = MESSAGE_BYTES;
        }
        room = room.saturating_sub(bytes);
        messages.last_mut().expect("there is a first").adapters.push(adapter);
    }
    let last = messages.len() - 1;
    for message in &mut messages[..last] {
        message.more = true;
    }
    messages
}

/// None for an adapter that is nowhere and need not be.
fn adapter(report: &AdapterReport) -> Option<AdapterResidency> {
    let (tier, bytes, error) = match &report.state {
        ResidencyState::Absent if report.pin.is_none() => return None,
        ResidencyState::Absent => (Tier::Absent, 0, ""),
        ResidencyState::Fetching => (Tier::Fetching, report.disk_bytes, ""),
        ResidencyState::Disk => (Tier::Disk, report.disk_bytes, ""),
        ResidencyState::Host => (Tier::Host, report.host_bytes, ""),
        ResidencyState::Device { .. } => (Tier::Device, report.device_bytes, ""),
        ResidencyState::Failed { reason, .. } => (Tier::Failed, 0, reason.as_str()),
    };
    let pin_refusal = match &report.pin {
        Some(PinState::Refused(refusal)) => refusal.to_string(),
        Some(PinState::Held) | None => String::new(),
    };
    Some(AdapterResidency {
        tenant_id: report.key.tenant.to_string(),
        digest: report.key.digest.0.to_vec(),
        tier: tier as i32,
        error: error.chars().take(MAX_REASON).collect(),
        bytes,
        pinned: report.pin.is_some(),
        pin_refusal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::AdapterKey;
    use lorikeet_contract::link::{MAX_MESSAGE_BYTES, NodeMessage, node_message};
    use lorikeet_contract::{AdapterDigest, TenantId};
    use std::time::Instant;

    #[test]
    fn a_report_of_any_size_travels_whole_in_messages_that_are_small_enough() {
        let tenant = TenantId::new();
        let adapters = (0..20_000u32).map(|i| {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&i.to_le_bytes());
            AdapterReport {
                key: AdapterKey { tenant, digest: AdapterDigest(digest) },
                state: ResidencyState::Failed {
                    retry_at: Instant::now(),
                    reason: "ä".repeat(5000),
                },
                pin: None,
                disk_bytes: 1,
                host_bytes: 0,
                device_bytes: 0,
            }
        });
        let report = ResidencyReport { adapters: adapters.collect(), ..Default::default() };
        let messages = to_messages(&report);
        assert!(messages.len() > 1);
        let sent: usize = messages.iter().map(|message| message.adapters.len()).sum();
        assert_eq!(sent, report.adapters.len());
        let more: Vec<_> = messages.iter().map(|message| message.more).collect();
        assert!(more[..more.len() - 1].iter().all(|more| *more) && !more[more.len() - 1]);
        for message in messages {
            let message = NodeMessage { message: Some(node_message::Message::Residency(message)) };
            assert!(message.encoded_len() < MAX_MESSAGE_BYTES / 2);
        }
    }

    #[test]
    fn a_node_without_adapters_still_tells_its_tiers() {
        let messages = to_messages(&ResidencyReport::default());
        assert_eq!((messages.len(), messages[0].tiers.len(), messages[0].more), (1, 3, false));
    }
}
