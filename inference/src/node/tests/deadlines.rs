use super::control_plane::SOON;
use super::harness::{Customer, Node, chat, node_of_one, slowly};
use super::sse::{self, Events};
use crate::config::Config;
use lorikeet_contract::link::FinishReason;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

async fn within(node: &Node, customer: &Customer, timeout: &str, more: Value) -> Response {
    let request = reqwest::Client::new().post(node.url("/v1/chat/completions")).timeout(SOON);
    let request = request.bearer_auth(customer.key.reveal()).header("X-Request-Timeout", timeout);
    request.json(&chat(more)).send().await.expect("an answer")
}

/// Status and error object.
async fn failure(
    node: &Node,
    customer: &Customer,
    timeout: &str,
    more: Value,
) -> (StatusCode, Value) {
    let response = within(node, customer, timeout, more).await;
    let status = response.status();
    let body: Value = response.json().await.expect("JSON");
    (status, body["error"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_outlives_its_own_timeout_fails_and_is_billed_as_one_given_up() {
    let (control_plane, node, customer) = node_of_one(slowly).await;
    let long = json!({ "max_tokens": 4000 });
    let (status, error) = failure(&node, &customer, "1", long).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(error["code"], "deadline_exceeded");
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("the 1 s of its `X-Request-Timeout`"), "{message}");

    let stream = json!({ "max_tokens": 4000, "stream": true });
    let response = within(&node, &customer, "1.2", stream).await;
    assert_eq!(response.status(), StatusCode::OK);
    let events = Events::of(response).rest().await;
    let (last, before) = events.split_last().expect("some");
    assert_eq!(last["error"]["code"], "deadline_exceeded", "{last}");
    assert!(!sse::text(before).is_empty(), "it had begun");

    let cancelled = |s: &super::control_plane::Seen| s.finals_with(FinishReason::Cancelled);
    let seen = control_plane.until("both finals", |s| cancelled(s).len() == 2).await;
    let [whole, stream] = &cancelled(&seen)[..] else { panic!("two") };
    assert!(whole.prompt_tokens > 0 && whole.completion_tokens == 0, "{whole:?}");
    assert!(stream.completion_tokens > 0, "{stream:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_node_cannot_end_in_the_time_that_it_gives_is_free() {
    let hasty = |config: &mut Config| {
        slowly(config);
        config.request_within = Duration::from_secs(1);
    };
    let (control_plane, node, customer) = node_of_one(hasty).await;
    let long = json!({ "max_tokens": 4000 });
    let (status, error) = failure(&node, &customer, "20", long).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("the 1 s that this node gives"), "{message}");
    let failed = |s: &super::control_plane::Seen| s.finals_with(FinishReason::Error);
    let seen = control_plane.until("its final", |s| failed(s).len() == 1).await;
    assert_eq!((failed(&seen)[0].prompt_tokens, failed(&seen)[0].completion_tokens), (0, 0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_that_is_no_number_of_seconds_is_refused_and_one_that_suffices_changes_nothing() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    for timeout in ["soon", "0", "-1"] {
        let (status, error) = failure(&node, &customer, timeout, json!({})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(error["param"], "X-Request-Timeout");
    }
    let answered = within(&node, &customer, "30", json!({ "max_tokens": 4 })).await;
    assert_eq!(answered.status(), StatusCode::OK);
    node.stop().await;
}
