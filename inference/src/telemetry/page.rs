//! `GET /metrics`: what has been counted, and what can be asked for at this moment. `docs/operations.md`
//! lists every name.

use super::engine::Tier;
use super::requests::{Total, Uses};
use super::{Telemetry, routers};
use crate::adapters::{ResidencyReport, ResidencyState, TierUse};
use crate::engine::{EngineHandle, EngineStats, KvUse};
use crate::link::Manifest;
use crate::usage::UsageLog;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lorikeet_contract::{AdapterVersionId, TenantId};
use lorikeet_metrics::{CONTENT_TYPE, Kind, Page};
use std::sync::Arc;

/// Label of all tenants, and of all adapters, that have no series of their own.
const OTHER: &str = "other";

/// Where a node's numbers come from.
pub struct Sources {
    pub telemetry: Arc<Telemetry>,
    pub engine: EngineHandle,
    pub manifest: Arc<Manifest>,
    pub usage: Arc<UsageLog>,
    pub model: String,
    /// cpu, cuda or sim.
    pub device: &'static str,
}

pub fn router(sources: Sources) -> axum::Router {
    axum::Router::new().route("/metrics", get(metrics)).with_state(Arc::new(sources))
}

async fn metrics(State(sources): State<Arc<Sources>>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], sources.page()).into_response()
}

impl Sources {
    fn page(&self) -> String {
        let stats = self.engine.stats();
        let mut page = Page::default();
        page.process();
        self.build(&mut page);
        self.requests(&mut page, &stats);
        self.steps(&mut page, &stats);
        kv(&mut page, stats.kv);
        self.adapters(&mut page, &stats);
        self.accounts(&mut page);
        self.by_tenant(&mut page);
        self.by_adapter(&mut page);
        let in_flight = self.telemetry.requests.in_flight().snapshot();
        routers::write(&mut page, &self.model, &stats, &in_flight);
        page.into_text()
    }

    fn build(&self, page: &mut Page) {
        let help = "The program and what it runs on.";
        let version = env!("CARGO_PKG_VERSION");
        let labels = [("version", version), ("device", self.device), ("model", &self.model)];
        page.family("lorikeet_build_info", Kind::Gauge, help).sample(&labels, 1);
    }

    fn requests(&self, page: &mut Page, stats: &EngineStats) {
        let metrics = &self.telemetry.requests;
        page.gauge("lorikeet_requests_running", "Requests that hold KV blocks.", stats.running);
        let help = "Requests that wait for room or for their adapter.";
        page.gauge("lorikeet_requests_waiting", help, stats.waiting);
        let help = "Requests that ended, by finish reason or error code.";
        let mut family = page.family("lorikeet_requests_total", Kind::Counter, help);
        for (outcome, count) in metrics.outcomes.snapshot() {
            family.sample(&[("outcome", outcome)], count);
        }
        let help = "HTTP requests answered; status 499: the client was gone first.";
        let mut family = page.family("lorikeet_http_requests_total", Kind::Counter, help);
        for ((method, route, status), count) in metrics.http.snapshot() {
            let status = status.to_string();
            family.sample(&[("method", method), ("route", &route), ("status", &status)], count);
        }
        let help = "Clients cut off because they did not take their answers.";
        page.counter("lorikeet_slow_readers_total", help, metrics.slow_readers.get());
        for (name, help, histogram) in [
            ("duration", "From a request's arrival to its last byte.", &metrics.duration),
            ("queue", "From submission to the first scheduled row.", &metrics.queue),
            (
                "adapter_load",
                "Of the queue time, until the adapter was on the device.",
                &metrics.adapter_load,
            ),
        ] {
            page.histogram(&format!("lorikeet_request_{name}_seconds"), help, histogram);
        }
        for (name, help, histogram) in [
            (
                "time_to_first_token",
                "From a request's arrival to its first token.",
                &metrics.time_to_first_token,
            ),
            ("inter_token", "Between two tokens of an answer.", &metrics.inter_token),
            (
                "time_per_output_token",
                "Mean time between the tokens of an answer.",
                &metrics.time_per_output_token,
            ),
        ] {
            page.histogram(&format!("lorikeet_{name}_seconds"), help, histogram);
        }
        for (name, help, counter) in [
            ("prompt", "Tokens of prompts that the engine accepted.", &metrics.prompt_tokens),
            ("completion", "Tokens generated.", &metrics.completion_tokens),
            ("prefix_query", "Prompt tokens looked up in the prefix cache.", &metrics.prefix_query),
            ("prefix_hit", "Prompt tokens found in the prefix cache.", &metrics.prefix_hit),
        ] {
            page.counter(&format!("lorikeet_{name}_tokens_total"), help, counter.get());
        }
    }

    fn steps(&self, page: &mut Page, stats: &EngineStats) {
        let metrics = self.engine.metrics();
        let help = "From a step's submission to its output.";
        page.histogram("lorikeet_step_seconds", help, &metrics.step_seconds);
        let help = "Sequences of one step.";
        page.histogram("lorikeet_step_sequences", help, &metrics.step_sequences);
        let help = "Rows (token positions) of one step.";
        page.histogram("lorikeet_step_rows", help, &metrics.step_rows);
        let help = "Rows computed, by phase.";
        let mut family = page.family("lorikeet_rows_total", Kind::Counter, help);
        family.sample(&[("phase", "prefill")], metrics.prefill_rows.get());
        family.sample(&[("phase", "decode")], metrics.decode_rows.get());
        let help = "Sequences that lost their KV blocks to make room.";
        page.counter("lorikeet_preemptions_total", help, metrics.preemptions.get());
        let help = "KV blocks that changed place to make room for adapters.";
        page.counter("lorikeet_kv_blocks_moved_total", help, metrics.blocks_moved.get());
        let help = "Adapters that gave their place on the device up to others while in use.";
        page.counter("lorikeet_adapter_rotations_total", help, stats.rotations);
    }

    fn adapters(&self, page: &mut Page, stats: &EngineStats) {
        let report = &stats.residency;
        let help = "Adapters with bytes in a tier; an adapter may be in several.";
        let mut family = page.family("lorikeet_adapters", Kind::Gauge, help);
        for tier in Tier::ALL {
            family.sample(&[("tier", tier.name())], adapters_in(tier, report));
        }
        let is_failed = |state: &ResidencyState| matches!(state, ResidencyState::Failed { .. });
        let failed = report.adapters.iter().filter(|adapter| is_failed(&adapter.state)).count();
        let help = "Adapters whose load failed and is not to be tried again yet.";
        page.gauge("lorikeet_adapters_failed", help, failed);
        let help = "Bytes of a tier in use, reservations of loads under way included.";
        let mut family = page.family("lorikeet_adapter_bytes", Kind::Gauge, help);
        for tier in Tier::ALL {
            family.sample(&[("tier", tier.name())], use_of(tier, report).used);
        }
        let help = "Bytes that a tier may hold.";
        let mut family = page.family("lorikeet_adapter_capacity_bytes", Kind::Gauge, help);
        for tier in Tier::ALL {
            family.sample(&[("tier", tier.name())], use_of(tier, report).capacity);
        }
        self.loads(page);
    }

    fn loads(&self, page: &mut Page) {
        let metrics = self.engine.metrics();
        let help = "Loads that ended, by the tier that they went to.";
        let mut family = page.family("lorikeet_adapter_loads_total", Kind::Counter, help);
        for tier in Tier::ALL {
            let into = metrics.into_tier(tier);
            for (result, counter) in [("ok", &into.succeeded), ("failed", &into.failed)] {
                family.sample(&[("tier", tier.name()), ("result", result)], counter.get());
            }
        }
        let help = "Bytes loaded into a tier.";
        let mut family = page.family("lorikeet_adapter_load_bytes_total", Kind::Counter, help);
        for tier in Tier::ALL {
            family.sample(&[("tier", tier.name())], metrics.into_tier(tier).bytes.get());
        }
        let help = "What a load into a tier took.";
        let mut family = page.family("lorikeet_adapter_load_seconds", Kind::Histogram, help);
        for tier in Tier::ALL {
            family.histogram(&[("tier", tier.name())], &metrics.into_tier(tier).seconds);
        }
        let help = "Adapters taken off the device.";
        page.counter("lorikeet_adapter_evictions_total", help, metrics.device_evictions.get());
    }

    fn accounts(&self, page: &mut Page) {
        let help = "Records on the disk that the control plane has not acknowledged.";
        page.gauge("lorikeet_usage_records_unshipped", help, self.usage.unshipped());
        let help = "1 while the usage log can be written; at 0 requests are refused.";
        page.gauge("lorikeet_usage_log_writable", help, u8::from(self.usage.is_writable()));
        let help = "Revision of the manifest served; 0 before the first.";
        page.gauge("lorikeet_manifest_revision", help, self.manifest.current().revision);
        let help = "Since the control plane was last heard; absent until it was.";
        let mut family = page.family("lorikeet_manifest_staleness_seconds", Kind::Gauge, help);
        if let Some(staleness) = self.manifest.staleness() {
            family.sample(&[], staleness.as_secs_f64());
        }
    }

    fn by_tenant(&self, page: &mut Page) {
        let (listed, others) = self.telemetry.requests.tenants.snapshot();
        let label = |id: TenantId| vec![("tenant", id.to_string())];
        let mut uses: Vec<_> = listed.into_iter().map(|(id, uses)| (label(id), uses)).collect();
        uses.push((vec![("tenant", OTHER.to_owned())], others));
        let help = "Requests refused before the engine had them, by a limit or as invalid.";
        let mut family = page.family("lorikeet_tenant_refused_total", Kind::Counter, help);
        for (labels, uses) in &uses {
            family.sample(&borrowed(labels), uses.refused);
        }
        write_uses(page, "tenant", &uses);
    }

    fn by_adapter(&self, page: &mut Page) {
        let (listed, others) = self.telemetry.requests.adapters.snapshot();
        let label = |(tenant, version): (TenantId, AdapterVersionId)| {
            vec![("tenant", tenant.to_string()), ("adapter", version.to_string())]
        };
        let mut uses: Vec<_> = listed.into_iter().map(|(id, uses)| (label(id), uses)).collect();
        let other = || OTHER.to_owned();
        uses.push((vec![("tenant", other()), ("adapter", other())], others));
        write_uses(page, "adapter", &uses);
    }
}

fn kv(page: &mut Page, kv: KvUse) {
    let help = "KV blocks: held by a request, kept for their prefix, or free.";
    let mut family = page.family("lorikeet_kv_blocks", Kind::Gauge, help);
    let free = kv.total - kv.used - kv.cached;
    for (state, blocks) in [("used", kv.used), ("cached", kv.cached), ("free", free)] {
        family.sample(&[("state", state)], blocks);
    }
    page.gauge("lorikeet_kv_use_ratio", "Part of the KV blocks held by requests.", kv.ratio());
}

fn use_of(tier: Tier, report: &ResidencyReport) -> TierUse {
    match tier {
        Tier::Disk => report.disk,
        Tier::Host => report.host,
        Tier::Device => report.device,
    }
}

fn adapters_in(tier: Tier, report: &ResidencyReport) -> usize {
    let bytes = |adapter: &&crate::adapters::AdapterReport| match tier {
        Tier::Disk => adapter.disk_bytes > 0,
        Tier::Host => adapter.host_bytes > 0,
        Tier::Device => adapter.device_bytes > 0,
    };
    report.adapters.iter().filter(bytes).count()
}

type Labelled = (Vec<(&'static str, String)>, Uses);

fn write_uses(page: &mut Page, of: &str, uses: &[Labelled]) {
    type Count = fn(&Uses) -> u64;
    let counts: [(&str, &str, Count); 4] = [
        ("requests", "Generations that ended.", |uses| uses.requests),
        ("prompt_tokens", "Tokens of prompts.", |uses| uses.prompt_tokens),
        ("cached_tokens", "Of these, from the prefix cache.", |uses| uses.cached_tokens),
        ("completion_tokens", "Tokens generated.", |uses| uses.completion_tokens),
    ];
    for (name, help, count) in counts {
        let name = format!("lorikeet_{of}_{name}_total");
        let mut family = page.family(&name, Kind::Counter, help);
        for (labels, uses) in uses {
            family.sample(&borrowed(labels), count(uses));
        }
    }
    type Read = fn(&Uses) -> Total;
    let totals: [(&str, &str, Read); 2] = [
        ("queue", "From submission to the first scheduled row.", |uses| uses.queue),
        ("time_to_first_token", "From a request's arrival to its first token.", |uses| {
            uses.time_to_first_token
        }),
    ];
    for (name, help, total) in totals {
        let name = format!("lorikeet_{of}_{name}_seconds");
        let mut family = page.family(&name, Kind::Summary, help);
        for (labels, uses) in uses {
            let Total { count, sum } = total(uses);
            family.total(&borrowed(labels), sum.as_secs_f64(), count);
        }
    }
}

fn borrowed<'a>(labels: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    labels.iter().map(|(label, text)| (*label, text.as_str())).collect()
}
