//! What a node tells: metrics that a strict reader takes, and traces over a real collector.

use super::collector::{Collector, attributes};
use super::control_plane::ControlPlane;
use super::harness::{Customer, Node, adapter, chat, node_of_one, slowly, store_adapter};
use super::sse::Events;
use crate::config::Config;
use lorikeet_contract::link::AdapterState;
use lorikeet_kit::exposition::Exposition;
use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::StatusCode;
use serde_json::json;
use std::time::Duration;

pub async fn metrics(node: &Node) -> Exposition {
    let url = format!("http://{}/metrics", node.metrics);
    let response = reqwest::get(url).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = response.text().await.expect("a body");
    Exposition::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Until `holds`, for what is known a moment after an answer has ended.
async fn until(node: &Node, what: &str, holds: impl Fn(&Exposition) -> bool) -> Exposition {
    let deadline = tokio::time::Instant::now() + super::control_plane::SOON;
    loop {
        let page = metrics(node).await;
        if holds(&page) {
            return page;
        }
        assert!(tokio::time::Instant::now() < deadline, "not soon enough: {what}: {page:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_well_formed_before_and_after_traffic_and_counts_what_happened() {
    let (quiet, busy) = (Customer::new(), Customer::new());
    let lost = adapter(busy.adapter("lost", AdapterState::Servable));
    let resources = [quiet.resources(), busy.resources(), vec![lost]].concat();
    let control_plane = ControlPlane::start(resources);
    let node = Node::ready(&control_plane, |_| {}).await;
    let before = metrics(&node).await;
    assert_eq!(before.value("lorikeet_completion_tokens_total", &[]), Some(0.0));
    assert_eq!(before.value("lorikeet_manifest_revision", &[]), Some(1.0));

    let pirate = store_adapter(&node, &busy, "pirate", "pirate").expect("the kit has it");
    control_plane.publish(vec![pirate]).await;
    control_plane.acknowledged(1).await;
    let prompt = "Tell me of lorikeets. ".repeat(20);
    let messages = json!([{ "role": "user", "content": prompt }]);
    for seed in 0..3 {
        let more = json!({ "seed": seed, "model": "pirate", "messages": messages });
        node.chat(&busy, more).await;
    }
    node.chat(&quiet, json!({ "max_tokens": 5 })).await;
    node.refused(busy.key.reveal(), json!({ "model": "lost" })).await;
    node.refused(busy.key.reveal(), json!({ "model": "nobody's" })).await;
    node.refused("lk_live_nobody", json!({})).await;

    let after = until(&node, "all are counted", |page| {
        page.sum("lorikeet_requests_total") == 7.0
            && page.value("lorikeet_usage_records_unshipped", &[]) == Some(0.0)
    })
    .await;
    let counted = after.monotone();
    for (series, value) in before.monotone() {
        assert!(counted.get(&series).is_some_and(|now| *now >= value), "{series:?} went down");
    }
    let outcome = |code| after.value("lorikeet_requests_total", &[("outcome", code)]);
    for (code, count) in [
        ("length", 4.0),
        ("adapter_load_failed", 1.0),
        ("model_not_found", 1.0),
        ("invalid_api_key", 1.0),
    ] {
        assert_eq!(outcome(code), Some(count), "{code}");
    }
    let chats = ("route", "/v1/chat/completions");
    let http = |status| {
        let labels = [("method", "POST"), chats, ("status", status)];
        after.value("lorikeet_http_requests_total", &labels)
    };
    assert_eq!(
        [http("200"), http("401"), http("404"), http("503")],
        [4.0, 1.0, 1.0, 1.0].map(Some)
    );

    let count = |name: &str| after.value(name, &[]).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(count("lorikeet_completion_tokens_total"), 29.0);
    assert_eq!(count("lorikeet_time_to_first_token_seconds_count"), 4.0);
    assert_eq!(count("lorikeet_inter_token_seconds_count"), 25.0);
    assert_eq!(count("lorikeet_time_per_output_token_seconds_count"), 4.0);
    assert_eq!(count("lorikeet_request_adapter_load_seconds_count"), 3.0);
    assert!(count("lorikeet_step_seconds_count") >= 29.0);
    assert!(count("lorikeet_step_rows_sum") > count("lorikeet_step_rows_count"));
    let hits = count("lorikeet_prefix_hit_tokens_total");
    assert!(hits > 0.0 && hits < count("lorikeet_prefix_query_tokens_total"));
    assert_eq!(count("lorikeet_manifest_revision"), 2.0);
    assert!(count("lorikeet_manifest_staleness_seconds") >= 0.0);

    for tier in ["disk", "host", "device"] {
        let load = |result| {
            let labels = [("tier", tier), ("result", result)];
            after.value("lorikeet_adapter_loads_total", &labels)
        };
        assert_eq!(load("ok"), Some(1.0), "{tier}");
        assert_eq!(load("failed"), Some(f64::from(tier == "disk")), "{tier}: {after:#?}");
        let of_tier = [("tier", tier)];
        assert!(after.value("lorikeet_adapter_load_bytes_total", &of_tier) > Some(1000.0));
        assert_eq!(after.value("lorikeet_adapters", &of_tier), Some(1.0));
    }
    assert_eq!(count("lorikeet_adapters_failed"), 1.0);

    let tenant = |customer: &Customer| {
        let id = customer.tenant.to_string();
        let labels = [("tenant", id.as_str())];
        after.value("lorikeet_tenant_completion_tokens_total", &labels)
    };
    assert_eq!((tenant(&quiet), tenant(&busy)), (Some(5.0), Some(24.0)));
    assert_eq!(after.sum("lorikeet_tenant_refused_total"), 1.0, "the model that is nobody's");
    assert_eq!(after.sum("lorikeet_adapter_requests_total"), 4.0, "three, and the lost one's");
    assert_eq!(after.sum("lorikeet_adapter_completion_tokens_total"), 24.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_documented_and_the_dashboard_shows_those_that_there_are() {
    let control_plane = ControlPlane::start(Vec::new());
    let node = Node::ready(&control_plane, |_| {}).await;
    let page = metrics(&node).await;
    node.stop().await;
    let root = lorikeet_kit::workspace();
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("it is there");
    let docs = read("docs/operations.md");
    let documented = |name: &str| docs.contains(&format!("`{name}`"));
    for name in page.names() {
        let bare = name.strip_prefix("lorikeet_").unwrap_or(name);
        let of_each = ["tenant_", "adapter_"].iter().find_map(|of| bare.strip_prefix(of));
        assert!(documented(bare) || of_each.is_some_and(documented), "{name} is not documented");
    }
    let dashboard = read("deploy/monitoring/grafana.json");
    let words = dashboard.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let shown: Vec<_> = words.filter(|word| word.starts_with("lorikeet_")).collect();
    assert!(shown.len() > 10);
    for name in shown {
        let family = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(page.names().any(|known| known == family), "no metric {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_find_who_runs_and_who_waits_under_the_names_that_they_read() {
    let (control_plane, node, customer) = node_of_one(|config| {
        slowly(config);
        config.scheduler.max_num_seqs = 1;
    })
    .await;
    let pirate = store_adapter(&node, &customer, "pirate", "pirate").expect("the kit has it");
    let sonnet = store_adapter(&node, &customer, "queued", "pirate").expect("the kit has it");
    control_plane.publish(vec![pirate, sonnet]).await;
    control_plane.acknowledged(1).await;
    let endless = |model: &str| chat(json!({"model": model, "stream": true, "max_tokens": 4000}));
    let key = customer.key.reveal();
    let mut running = Events::of(node.post(key, &endless("pirate")).await);
    running.next().await.expect("it runs");
    let base = endless("base");
    let queued = endless("queued");
    let waiting = async {
        tokio::join!(node.post(key, &queued), node.post(key, &base));
    };
    let seen = until(&node, "both wait", |page| {
        page.sum("vllm:num_requests_running") == 1.0 && page.sum("vllm:num_requests_waiting") == 2.0
    });
    let page = tokio::select! {
        page = seen => page,
        () = waiting => panic!("only one sequence runs at a time"),
    };
    let (labels, time) = page.samples("vllm:lora_requests_info").next().expect("a sample");
    assert_eq!(labels["running_lora_adapters"], "pirate");
    assert_eq!(labels["waiting_lora_adapters"], "queued");
    assert!(labels["max_lora"].parse::<u64>().expect("a number") >= 1);
    assert!(time > 1e9);
    let use_ = page.value("vllm:kv_cache_usage_perc", &[("model_name", "base")]);
    assert!(use_ > Some(0.0) && use_ < Some(1.0), "{use_:?}");
    drop(running);
    let page = until(&node, "nobody is left", |page| {
        page.sum("vllm:num_requests_running") + page.sum("vllm:num_requests_waiting") == 0.0
    })
    .await;
    let (labels, _) = page.samples("vllm:lora_requests_info").next().expect("a sample");
    assert_eq!((&*labels["running_lora_adapters"], &*labels["waiting_lora_adapters"]), ("", ""));
    assert_eq!(page.value("lorikeet_requests_total", &[("outcome", "cancelled")]), Some(3.0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_trace_of_its_callers_with_what_it_waited_for_and_did() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let mut collector = Collector::start().await;
    let endpoint = collector.url();
    let traced = |config: &mut Config| {
        slowly(config);
        config.trace.endpoint = Some(endpoint);
    };
    let node = Node::ready(&control_plane, traced).await;
    let pirate = store_adapter(&node, &customer, "pirate", "pirate").expect("the kit has it");
    control_plane.publish(vec![pirate]).await;
    control_plane.acknowledged(1).await;

    let (trace, caller) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let post = async |flags: &str, model: &str| {
        let request = reqwest::Client::new()
            .post(node.url("/v1/chat/completions"))
            .header("traceparent", format!("00-{trace}-{caller}-{flags}"))
            .bearer_auth(customer.key.reveal())
            .json(&chat(json!({ "model": model })));
        let response = request.send().await.expect("an answer");
        response.headers()["traceresponse"].to_str().expect("text").to_owned()
    };
    let answered = post("01", "pirate").await;
    let unsampled = post("00", "base").await;
    assert!(unsampled.starts_with(&format!("00-{trace}-")) && unsampled.ends_with("-00"));
    node.chat(&customer, json!({})).await;
    // Its end sends what it still has.
    node.stop().await;

    let spans = collector.received(8).await;
    let of_caller: Vec<&Span> = spans.iter().filter(|s| hex(&s.trace_id) == trace).collect();
    let find = |name: &str| {
        let found = of_caller.iter().find(|span| span.name == name);
        *found.unwrap_or_else(|| panic!("no span {name}: {of_caller:#?}"))
    };
    let root = find("POST /v1/chat/completions");
    assert_eq!(answered, format!("00-{trace}-{}-01", hex(&root.span_id)));
    assert_eq!(hex(&root.parent_span_id), caller);
    let about = attributes(root);
    assert_eq!(about["http.response.status_code"], "200");
    assert_eq!(about["lorikeet.tenant.id"], customer.tenant.to_string());
    let [queue, load, prefill, decode] = ["queue", "adapter_load", "prefill", "decode"].map(find);
    for child in [queue, load, prefill, decode] {
        assert_eq!(child.parent_span_id, root.span_id, "{}", child.name);
        assert!(child.start_time_unix_nano >= root.start_time_unix_nano, "{}", child.name);
        assert!(child.end_time_unix_nano <= root.end_time_unix_nano, "{}", child.name);
    }
    assert_eq!(queue.end_time_unix_nano, prefill.start_time_unix_nano);
    assert_eq!(prefill.end_time_unix_nano, decode.start_time_unix_nano);
    let steps = Duration::from_nanos(decode.end_time_unix_nano - decode.start_time_unix_nano);
    assert!(steps >= Duration::from_millis(7 * 8 / 2), "seven more steps of 8 ms: {steps:?}");
    assert_eq!(attributes(prefill)["gen_ai.request.model"], "pirate@1");
    assert_eq!(attributes(decode)["gen_ai.usage.output_tokens"], "8");

    let is_root = |span: &&&Span| span.name == root.name;
    assert_eq!(of_caller.iter().filter(is_root).count(), 1, "what its caller does not sample");
    let own = spans.iter().find(|s| s.name == root.name && hex(&s.trace_id) != trace);
    assert!(own.is_some_and(|span| span.parent_span_id.is_empty()), "a trace of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_holds_nobody_up() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", nobody.local_addr().expect("an address"));
    drop(nobody);
    let node = Node::ready(&control_plane, |c| c.trace.endpoint = Some(endpoint)).await;
    node.chat(&customer, json!({})).await;
    node.stop().await;
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}
