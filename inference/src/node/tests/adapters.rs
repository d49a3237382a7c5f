//! Adapters under way on a node: warmed up, pinned, replaced, disabled, deleted.

use super::control_plane::ControlPlane;
use super::harness::{Customer, Node, adapter, chat, node_of_one, store_adapter, text};
use super::sse::{self, Events};
use lorikeet_contract::link::{
    AdapterResource, AdapterState, Resource, ResourceKind, ResourceRef, Tier,
};
use prost::Message;
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A published resource, changed.
fn changed(published: &Resource, change: impl FnOnce(&mut AdapterResource)) -> Resource {
    let mut resource = AdapterResource::decode(published.payload.as_slice()).expect("it reads");
    change(&mut resource);
    adapter(resource)
}

fn gone(published: &Resource) -> ResourceRef {
    ResourceRef { kind: ResourceKind::Adapter as i32, id: published.id.clone() }
}

/// Files of adapters in the node's disk cache.
fn cached(data: &Path) -> Vec<PathBuf> {
    fn walk(directory: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }
    let mut files = Vec::new();
    walk(&data.join("adapters/files"), &mut files);
    files
}

async fn until_cached(data: &Path, count: usize) {
    for _ in 0..2000 {
        if cached(data).len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("still in the cache: {:?}", cached(data));
}

async fn warm_up(node: &Node, customer: &Customer, model: &str) -> (StatusCode, Value) {
    let url = node.url(&format!("/v1/adapters/{model}/warm-up"));
    let request = reqwest::Client::new().post(url).bearer_auth(customer.key.reveal());
    let response = request.send().await.expect("an answer");
    (response.status(), response.json().await.expect("JSON"))
}

fn millis(response: &reqwest::Response, header: &str) -> u64 {
    response.headers()[header].to_str().expect("text").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warmed_up_adapter_answers_without_a_load_and_every_answer_says_what_it_waited_for() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let key = customer.key.reveal();
    let pirate = store_adapter(&node, &customer, "sailor", "pirate").expect("the kit's own");
    let lost = adapter(customer.adapter("lost", AdapterState::Servable));
    let pending = adapter(customer.adapter("pending", AdapterState::Pending));
    control_plane.publish(vec![pirate, lost, pending]).await;
    control_plane.acknowledged(1).await;

    let cold = node.post(key, &chat(json!({ "model": "sailor", "stream": true }))).await;
    let (queue, load) =
        (millis(&cold, "x-lorikeet-queue-ms"), millis(&cold, "x-lorikeet-adapter-load-ms"));
    assert!(load > 0 && load <= queue, "{load} of {queue}");
    drop(cold);
    let (status, body) = warm_up(&node, &customer, "sailor@1").await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("loaded")), "{body}");
    assert_eq!(body["model"], "sailor@1");
    assert!(body["load_ms"].is_u64());
    for more in [json!({ "model": "sailor" }), json!({})] {
        let warm = node.post(key, &chat(more)).await;
        assert_eq!(warm.status(), StatusCode::OK);
        assert_eq!(millis(&warm, "x-lorikeet-adapter-load-ms"), 0);
        millis(&warm, "x-lorikeet-queue-ms");
    }

    assert_eq!(warm_up(&node, &customer, "base").await.0, StatusCode::OK);
    let refusals = [
        ("lost", StatusCode::SERVICE_UNAVAILABLE, "adapter_load_failed"),
        ("nobody", StatusCode::NOT_FOUND, "model_not_found"),
        ("pending", StatusCode::CONFLICT, "adapter_not_ready"),
        ("sailor?wait=soon", StatusCode::BAD_REQUEST, ""),
    ];
    for (model, expected, code) in refusals {
        let path = match model.split_once('?') {
            Some((model, query)) => format!("{model}/warm-up?{query}"),
            None => format!("{model}/warm-up"),
        };
        let url = node.url(&format!("/v1/adapters/{path}"));
        let request = reqwest::Client::new().post(url).bearer_auth(key);
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), expected, "{model}");
        let body: Value = response.json().await.expect("JSON");
        assert!(code.is_empty() || body["error"]["code"] == code, "{body}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_adapter_is_on_the_device_before_anybody_asks_and_operators_are_told() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let pirate = store_adapter(&node, &customer, "sailor", "pirate").expect("the kit's own");
    control_plane.publish(vec![changed(&pirate, |resource| resource.pinned = true)]).await;
    let seen = control_plane
        .until("the pinned adapter is on the device", |seen| {
            let on_device = |a: &&lorikeet_contract::link::AdapterResidency| {
                a.tier() == Tier::Device && a.pinned && a.pin_refusal.is_empty()
            };
            seen.residency.iter().filter(on_device).count() == 1
        })
        .await;
    assert_eq!(seen.residency[0].tenant_id, customer.tenant.to_string());
    let answer = node.post(customer.key.reveal(), &chat(json!({ "model": "sailor" }))).await;
    assert_eq!(millis(&answer, "x-lorikeet-adapter-load-ms"), 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_replaced_disabled_or_deleted_serves_those_who_have_it_and_nobody_else() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let key = customer.key.reveal();
    let first = store_adapter(&node, &customer, "sailor", "pirate").expect("the kit's own");
    control_plane.publish(vec![first.clone()]).await;
    control_plane.acknowledged(1).await;
    let long = json!({ "model": "sailor", "max_tokens": 600 });
    let alone = node.chat(&customer, long.clone()).await;
    let streamed = |more: &Value| {
        let mut more = more.clone();
        more["stream"] = json!(true);
        chat(more)
    };

    // Replaced while it streams: the name means other bytes from now on.
    let mut running = Events::of(node.post(key, &streamed(&long)).await);
    let mut chunks = vec![running.next().await.expect("it runs")];
    let store = store_adapter(&node, &customer, "sailor-2", "json").expect("the kit's own");
    let second = changed(&store, |resource| {
        (resource.name, resource.version) = ("sailor".into(), 2);
    });
    control_plane.publish(vec![second.clone()]).await;
    control_plane.acknowledged(1).await;
    let replaced = node.chat(&customer, json!({ "model": "sailor" })).await;
    let by_number = node.chat(&customer, json!({ "model": "sailor@2" })).await;
    assert_eq!(text(&replaced), text(&by_number));
    let before = node.chat(&customer, json!({ "model": "sailor@1" })).await;
    assert_ne!(text(&replaced), text(&before));

    // The first is deleted while it streams still: the answer ends as it would have alone.
    control_plane.change(Vec::new(), vec![gone(&first)], |_| {}).await;
    control_plane.acknowledged(1).await;
    let (status, _) = node.refused(key, json!({ "model": "sailor@1" })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    chunks.extend(running.rest().await);
    assert_eq!(sse::text(&chunks), text(&alone));
    until_cached(node.data.path(), 1).await;

    let disabled = changed(&second, |resource| resource.state = AdapterState::Disabled as i32);
    control_plane.publish(vec![disabled]).await;
    control_plane.acknowledged(1).await;
    let (status, error) = node.refused(key, json!({ "model": "sailor" })).await;
    assert_eq!((status, &error["code"]), (StatusCode::CONFLICT, &json!("adapter_disabled")));
    until_cached(node.data.path(), 0).await;
    control_plane.publish(vec![second]).await;
    control_plane.acknowledged(1).await;
    let again = node.chat(&customer, json!({ "model": "sailor" })).await;
    assert_eq!(text(&again), text(&replaced));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_while_the_node_was_down_leaves_its_disk_at_the_start() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let kept = store_adapter(&node, &customer, "sailor", "pirate").expect("the kit's own");
    let deleted = store_adapter(&node, &customer, "clerk", "json").expect("the kit's own");
    control_plane.publish(vec![kept, deleted.clone()]).await;
    control_plane.acknowledged(1).await;
    for model in ["sailor", "clerk"] {
        node.chat(&customer, json!({ "model": model })).await;
    }
    assert_eq!(cached(node.data.path()).len(), 2);
    // The manifest has lost it and is kept; the bytes are still there when the process dies.
    control_plane.change(Vec::new(), vec![gone(&deleted)], |_| {}).await;
    control_plane.acknowledged(1).await;
    let manifest = node.stop().await;
    let file =
        manifest.path().join("adapters/files").join(customer.tenant.as_uuid().simple().to_string());
    let left = file.join(format!("{}.{}.lka", "ab".repeat(32), "cd".repeat(32)));
    std::fs::write(&left, b"deleted").expect("written");
    until_cached(manifest.path(), 2).await;

    let nowhere = ControlPlane::start(Vec::new());
    let url = nowhere.url();
    nowhere.kill();
    let node = Node::start_on(manifest, &url, |_| {}).await;
    node.until_ready().await;
    until_cached(node.data.path(), 1).await;
    assert!(!left.exists());
    node.chat(&customer, json!({ "model": "sailor" })).await;
    node.stop().await;
}
