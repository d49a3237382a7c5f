//! The same under the names that adapter-aware routers read: the endpoint picker of Kubernetes' Gateway
//! API Inference Extension and of llm-d, whose protocol took them from vLLM.

use super::requests::Stages;
use crate::engine::EngineStats;
use lorikeet_compute::backend::Capacity;
use lorikeet_metrics::{Kind, Page};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

pub fn write(
    page: &mut Page,
    model: &str,
    stats: &EngineStats,
    in_flight: &BTreeMap<String, Stages>,
) {
    let of_model = [("model_name", model)];
    let help = "Requests in the engine's queue.";
    let mut family = page.family("vllm:num_requests_waiting", Kind::Gauge, help);
    family.sample(&of_model, stats.waiting);
    let help = "Requests that are being served.";
    let mut family = page.family("vllm:num_requests_running", Kind::Gauge, help);
    family.sample(&of_model, stats.running);
    let help = "KV blocks in use: 1 is 100 percent.";
    let mut family = page.family("vllm:kv_cache_usage_perc", Kind::Gauge, help);
    family.sample(&of_model, stats.kv.ratio());

    let help = "Block size and number of the KV cache, as labels.";
    // The most that there may be, whoever has their room now: a label must not change.
    let Capacity { block_size, num_blocks, .. } = stats.capacity;
    let (size, blocks) = (block_size.to_string(), num_blocks.to_string());
    let labels = [("model_name", model), ("block_size", &size), ("num_gpu_blocks", &blocks)];
    page.family("vllm:cache_config_info", Kind::Gauge, help).sample(&labels, 1);

    let names = |busy: fn(&Stages) -> bool| {
        let busy = in_flight.iter().filter(|(_, stages)| busy(stages));
        busy.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",")
    };
    let help = "Adapters with requests, as labels; the value is the time of this answer.";
    let mut family = page.family("vllm:lora_requests_info", Kind::Gauge, help);
    let labels = [
        ("max_lora", max_adapters(stats).to_string()),
        ("running_lora_adapters", names(|stages| stages.running > 0)),
        ("waiting_lora_adapters", names(|stages| stages.waiting > 0)),
    ];
    let labels = labels.each_ref().map(|(label, text)| (*label, text.as_str()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    family.sample(&labels, now.as_secs_f64());
}

/// How many adapters the device has room for. Here it has bytes, each adapter taking its true rank: so
/// many as fit of the size of those that are there now; the number of slots while none is.
fn max_adapters(stats: &EngineStats) -> u64 {
    let slots = u64::from(stats.capacity.max_slots);
    let device = stats.residency.device;
    let resident = stats.residency.adapters.iter().filter(|a| a.device_bytes > 0).count() as u64;
    match device.used.checked_div(resident) {
        Some(mean) if mean > 0 => (device.capacity / mean).clamp(1, slots.max(1)),
        _ => slots,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{AdapterKey, AdapterReport, ResidencyReport, ResidencyState, TierUse};
    use lorikeet_contract::{AdapterDigest, TenantId};
    use lorikeet_kit::exposition::Exposition;
    use std::sync::Arc;

    fn resident(device_bytes: u64) -> AdapterReport {
        AdapterReport {
            key: AdapterKey { tenant: TenantId::new(), digest: AdapterDigest([1; 32]) },
            state: ResidencyState::Disk,
            pin: None,
            disk_bytes: 0,
            host_bytes: 0,
            device_bytes,
        }
    }

    #[test]
    fn the_adapters_that_fit_follow_from_the_bytes_of_those_that_are_there() {
        let capacity = Capacity { max_slots: 64, ..Capacity::default() };
        let mut stats = EngineStats { capacity, ..EngineStats::default() };
        assert_eq!(max_adapters(&stats), 64);
        let device = TierUse { used: 300, capacity: 1000 };
        let adapters = vec![resident(100), resident(200), resident(0)];
        let report = ResidencyReport { device, adapters, ..ResidencyReport::default() };
        stats.residency = Arc::new(report);
        assert_eq!(max_adapters(&stats), 6);
        stats.capacity.max_slots = 4;
        assert_eq!(max_adapters(&stats), 4);
    }

    #[test]
    fn adapters_stand_in_the_labels_by_what_their_requests_do() {
        let stages = |waiting, running| Stages { waiting, running };
        let in_flight = BTreeMap::from([
            ("both".to_owned(), stages(1, 2)),
            ("running".to_owned(), stages(0, 1)),
            ("waiting".to_owned(), stages(3, 0)),
        ]);
        let mut page = Page::default();
        write(&mut page, "base", &EngineStats::default(), &in_flight);
        let page = Exposition::parse(&page.into_text()).expect("well-formed");
        let (labels, time) = page.samples("vllm:lora_requests_info").next().expect("a sample");
        assert_eq!(labels["running_lora_adapters"], "both,running");
        assert_eq!(labels["waiting_lora_adapters"], "both,waiting");
        assert_eq!(labels["max_lora"], "0");
        assert!(time > 1e9, "the picker takes the latest: {time}");
    }
}
