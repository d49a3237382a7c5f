use super::control_plane::{ControlPlane, SOON};
use super::harness::{Customer, Node, chat, tenant};
use super::sse::Events;
use lorikeet_contract::link::control_message::Message as ToNode;
use lorikeet_contract::link::{Limits, RateShare, Resource, TenantResource};
use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn limited(customer: &Customer, limits: Limits) -> Vec<Resource> {
    let resource = TenantResource { limits: Some(limits), ..customer.tenant_resource() };
    let mut resources = customer.resources();
    resources[0] = tenant(resource);
    resources
}

fn number(headers: &HeaderMap, name: &str) -> u64 {
    let value = headers.get(name).unwrap_or_else(|| panic!("no {name} in {headers:?}"));
    value.to_str().expect("text").parse().expect("a number")
}

async fn error(response: Response) -> Value {
    let body: Value = response.json().await.expect("JSON");
    body["error"].clone()
}

async fn models(node: &Node, customer: &Customer) -> Response {
    let request = reqwest::Client::new().get(node.url("/v1/models"));
    let request = request.timeout(SOON).bearer_auth(customer.key.reveal());
    request.send().await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_above_the_rate_are_turned_away_with_the_limit_and_the_wait() {
    let (limited_one, other) = (Customer::new(), Customer::new());
    let one = Limits { requests_per_minute: Some(1), ..Limits::default() };
    let resources = [limited(&limited_one, one), other.resources()].concat();
    let control_plane = ControlPlane::start(resources);
    let node = Node::ready(&control_plane, |_| {}).await;
    let key = limited_one.key.reveal();

    // What is refused for itself costs nothing.
    let refused = node.post(key, &chat(json!({ "model": "nobody" }))).await;
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    assert_eq!(number(refused.headers(), "x-ratelimit-remaining-requests"), 1);

    let first = node.post(key, &chat(json!({}))).await;
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(number(first.headers(), "x-ratelimit-limit-requests"), 1);
    assert_eq!(number(first.headers(), "x-ratelimit-remaining-requests"), 0);
    assert!(!first.headers().contains_key("x-ratelimit-limit-tokens"), "no such limit");

    let second = node.post(key, &chat(json!({}))).await;
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait = number(second.headers(), "retry-after");
    assert!((1..=60).contains(&wait), "{wait}");
    let reset = second.headers()["x-ratelimit-reset-requests"].to_str().expect("text").to_owned();
    assert!(reset.ends_with('s'), "{reset}");
    let error = error(second).await;
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("rate_limit_exceeded"), &json!("rate_limit_error"))
    );
    let message = error["message"].as_str().expect("text");
    assert!(
        message.contains("1 requests per minute") && message.contains("Try again"),
        "{message}"
    );
    // Looking is free, and says where one stands.
    let looked = models(&node, &limited_one).await;
    assert_eq!(looked.status(), StatusCode::OK);
    assert_eq!(number(looked.headers(), "x-ratelimit-remaining-requests"), 0);

    let answer = node.post(other.key.reveal(), &chat(json!({}))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let told = answer.headers().keys().any(|name| name.as_str().starts_with("x-ratelimit"));
    assert!(!told, "whoever has no limit is told of none");
    let seen = control_plane.until("two finals", |s| s.finals().len() == 2).await;
    assert_eq!(seen.finals().len(), 2, "what is turned away leaves no record");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_reserved_at_the_start_and_what_was_not_used_goes_back() {
    let customer = Customer::new();
    let limits = Limits { tokens_per_minute: Some(5000), ..Limits::default() };
    let control_plane = ControlPlane::start(limited(&customer, limits));
    let node = Node::ready(&control_plane, |_| {}).await;
    let began = Instant::now();
    let key = customer.key.reveal();
    let long = chat(json!({ "stream": true, "max_tokens": 4000 }));
    let response = node.post(key, &long).await;
    let while_it_runs = number(response.headers(), "x-ratelimit-remaining-tokens");
    let refilled = |began: Instant| began.elapsed().as_secs() * 5000 / 60 + 100;
    assert!(while_it_runs < 1000 + refilled(began), "{while_it_runs}");
    let mut events = Events::of(response);
    events.next().await.expect("it runs");
    if began.elapsed() < Duration::from_secs(10) {
        let too_many = node.post(key, &chat(json!({ "max_tokens": 3000 }))).await;
        assert_eq!(too_many.status(), StatusCode::TOO_MANY_REQUESTS);
        let message = error(too_many).await["message"].to_string();
        assert!(message.contains("5000 tokens per minute"), "{message}");
    }
    drop(events);
    let back = async {
        while number(models(&node, &customer).await.headers(), "x-ratelimit-remaining-tokens")
            < while_it_runs + 1000
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, back).await.expect("what was reserved and not used is back");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_so_many_requests_at_once_and_a_place_again_when_one_ends() {
    let customer = Customer::new();
    let limits = Limits { max_concurrency: Some(1), ..Limits::default() };
    let control_plane = ControlPlane::start(limited(&customer, limits));
    let node = Node::ready(&control_plane, |_| {}).await;
    let key = customer.key.reveal();
    let long = chat(json!({ "stream": true, "max_tokens": 4000 }));
    let mut running = Events::of(node.post(key, &long).await);
    running.next().await.expect("it runs");
    let second = node.post(key, &chat(json!({}))).await;
    assert_eq!((second.status().as_u16(), number(second.headers(), "retry-after")), (429, 1));
    assert_eq!(error(second).await["code"], "concurrency_limit_exceeded");
    drop(running);
    let again = async {
        while !node.post(key, &chat(json!({}))).await.status().is_success() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, again).await.expect("its place is free");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_to_its_part_of_a_rate_also_after_a_restart_without_the_control_plane() {
    let customer = Customer::new();
    let limits = Limits { requests_per_minute: Some(90), ..Limits::default() };
    let control_plane = ControlPlane::start(limited(&customer, limits));
    let node = Node::ready(&control_plane, |_| {}).await;
    let limit = async |node: &Node| {
        number(models(node, &customer).await.headers(), "x-ratelimit-limit-requests")
    };
    assert_eq!(limit(&node).await, 90, "alone as far as it knows");
    let share = |nodes, position| ToNode::RateShare(RateShare { nodes, position });
    // One that cannot be is not followed.
    control_plane.say(vec![share(3, 1), share(0, 0)]).await;
    let told = async {
        while limit(&node).await != 30 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, told).await.expect("it follows");
    control_plane.kill();
    let data = node.stop().await;
    let nowhere = ControlPlane::start(Vec::new());
    let url = nowhere.url();
    nowhere.kill();
    let node = Node::start_on(data, &url, |_| {}).await;
    node.until_ready().await;
    assert_eq!(limit(&node).await, 30);
    node.stop().await;
}
