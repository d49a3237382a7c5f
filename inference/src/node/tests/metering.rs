use super::control_plane::ControlPlane;
use super::harness::{Customer, Node, chat, node_of_one, slowly};
use super::sse::{self, Events};
use crate::config::Config;
use lorikeet_contract::link::{FinishReason, UsageKind};
use serde_json::json;
use std::time::Duration;
use tokio::net::TcpStream;

async fn begun(node: &Node, customer: &Customer, chunks: usize) -> (Events, usize) {
    let request = chat(json!({ "stream": true, "max_tokens": 4000 }));
    let mut events = Events::of(node.post(customer.key.reveal(), &request).await);
    let mut with_text = 0;
    while with_text < chunks {
        let event = events.next().await.expect("it goes on");
        with_text += usize::from(!sse::text(&[event]).is_empty());
    }
    (events, with_text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_cancels_its_request_and_pays_for_what_it_was_sent() {
    let (control_plane, node, customer) = node_of_one(slowly).await;
    let (events, received) = begun(&node, &customer, 5).await;
    drop(events);
    let cancelled = |s: &super::control_plane::Seen| s.finals_with(FinishReason::Cancelled);
    let seen = control_plane.until("a cancelled final", |s| !cancelled(s).is_empty()).await;
    let record = cancelled(&seen).remove(0);
    assert!(record.completion_tokens >= received as u64, "{record:?}");
    assert!(record.completion_tokens < 400, "generation went on: {record:?}");
    assert!(record.prompt_tokens > 0);
    assert_eq!(seen.finals().len(), 1);

    // A client that leaves before the answer is whole was sent nothing.
    let request = chat(json!({ "max_tokens": 4000 }));
    let call = node.post(customer.key.reveal(), &request);
    let given_up = tokio::time::timeout(Duration::from_millis(300), call).await;
    assert!(given_up.is_err(), "not finished yet");
    let seen = control_plane.until("a second one", |s| cancelled(s).len() == 2).await;
    assert_eq!(cancelled(&seen)[1].completion_tokens, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_cache_had_of_a_prompt_is_accounted_also_when_the_answer_is_cut_short() {
    let (control_plane, node, customer) = node_of_one(slowly).await;
    let again = |more| {
        let mut body = chat(more);
        body["messages"][0]["content"] = "Tell me of lorikeets. ".repeat(20).into();
        body
    };
    let first = node.chat(&customer, again(json!({}))).await;
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let text = super::harness::text(&first).to_owned();

    let request = again(json!({ "stream": true, "max_tokens": 4000 }));
    let mut cut = Events::of(node.post(customer.key.reveal(), &request).await);
    cut.next().await.expect("it runs");
    drop(cut);
    let stop = text.chars().take(4).collect::<String>();
    let stopped = node.chat(&customer, again(json!({ "stop": stop }))).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    let whole = node.chat(&customer, again(json!({}))).await;
    let cached = whole["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let cached = cached.filter(|n| *n > 0).expect("the cache has the prompt");
    assert_eq!(stopped["usage"]["prompt_tokens_details"]["cached_tokens"], cached);
    let seen = control_plane.until("all finals", |s| s.finals().len() == 4).await;
    let cut = seen.finals_with(FinishReason::Cancelled);
    assert_eq!(cut.iter().map(|record| record.cached_tokens).collect::<Vec<_>>(), [cached]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_each_durable_record_arrives_once_and_open_requests_are_closed() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    control_plane.refuse_usage(true);
    let node = Node::ready(&control_plane, slowly).await;
    node.chat(&customer, json!({ "max_tokens": 4 })).await;
    let (events, received) = begun(&node, &customer, 20).await;
    let image = node.crash_image();
    assert_eq!(control_plane.seen().usage().count(), 0, "nothing was shipped");
    drop(events);
    node.stop().await;

    control_plane.refuse_usage(false);
    let reborn = Node::start_on(image, &control_plane.url(), |_| {}).await;
    let crashed = |s: &super::control_plane::Seen| s.finals_with(FinishReason::Crashed);
    let seen = control_plane.until("the crashed final", |s| !crashed(s).is_empty()).await;
    let finals = seen.finals();
    assert_eq!(finals.len(), 2);
    assert_eq!((finals[0].finish_reason(), finals[0].completion_tokens), (FinishReason::Length, 4));
    let progress = seen.usage().filter(|r| r.kind() == UsageKind::Progress);
    let last_known = progress.map(|r| r.completion_tokens).max().expect("progress was written");
    assert_eq!(crashed(&seen)[0].completion_tokens, last_known);
    assert!(last_known > 0 && last_known <= received as u64 + 20);
    reborn.until_ready().await;
    reborn.chat(&customer, json!({})).await;
    control_plane.until("the log goes on", |s| s.finals().len() == 3).await;
    reborn.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_made_while_the_control_plane_is_away_arrives_when_it_is_back() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    node.chat(&customer, json!({})).await;
    control_plane.until("a first final", |s| s.finals().len() == 1).await;
    let killed = control_plane.kill();
    for _ in 0..3 {
        node.chat(&customer, json!({})).await;
    }
    let control_plane = killed.restart().await;
    node.chat(&customer, json!({})).await;
    let seen = control_plane.until("all finals", |s| s.finals().len() == 5).await;
    assert_eq!(seen.logs.len(), 1, "one log");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_in_order_ends_its_requests_and_ships_their_usage() {
    let (control_plane, node, customer) = node_of_one(slowly).await;
    let request = chat(json!({ "stream": true, "max_tokens": 40 }));
    let mut events = Events::of(node.post(customer.key.reveal(), &request).await);
    events.next().await.expect("it has begun");
    let (_, rest) = tokio::join!(node.stop(), events.rest());
    let closing = rest.last().expect("a closing chunk");
    assert_eq!(closing["choices"][0]["finish_reason"], "length", "it was let end");
    let finals = control_plane.seen().finals();
    assert_eq!(finals.len(), 1, "shipped before the node ended");
    assert_eq!(finals[0].completion_tokens, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_ended_has_closed_every_account_and_let_go_of_its_directory() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let impatient = |config: &mut Config| {
        slowly(config);
        config.drain.timeout = Duration::from_millis(200);
    };
    let node = Node::ready(&control_plane, impatient).await;
    let silent = TcpStream::connect(node.address).await.expect("a connection");
    let (mut endless, received) = begun(&node, &customer, 3).await;
    let data = node.stop().await;
    let lock = std::fs::File::open(data.path().join("usage/lock")).expect("the lock's file");
    lock.try_lock().expect("free at once, with clients still there");
    let last = endless.rest().await.pop().expect("a last event");
    assert_eq!(last["error"]["code"], "node_stopped", "{last}");
    drop(silent);
    let finals = control_plane.seen().finals();
    assert_eq!(finals.len(), 1, "shipped before the node ended");
    assert_eq!(finals[0].finish_reason(), FinishReason::Error);
    assert!(finals[0].completion_tokens >= received as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_that_a_restored_database_lost_is_shipped_again() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    for count in 1..=3 {
        node.chat(&customer, json!({})).await;
        control_plane.until("its final", |s| s.finals().len() == count).await;
    }
    let before: Vec<_> = control_plane.seen().usage().cloned().collect();
    control_plane.restore_usage(1);
    node.chat(&customer, json!({})).await;
    let seen = control_plane.until("everything again", |s| s.finals().len() == 4).await;
    let after: Vec<_> = seen.usage().take(before.len()).cloned().collect();
    assert_eq!(after, before);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_quarantine_is_kept_and_the_node_serves_on() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    control_plane.quarantine_usage("the chain does not continue");
    let node = Node::ready(&control_plane, |_| {}).await;
    node.chat(&customer, json!({})).await;
    node.chat(&customer, json!({})).await;
    let data = node.stop().await;
    assert_eq!(control_plane.seen().usage().count(), 0);

    control_plane.quarantine_usage("");
    let node = Node::start_on(data, &control_plane.url(), |_| {}).await;
    control_plane.until("both finals", |s| s.finals().len() == 2).await;
    node.stop().await;
}
