use super::control_plane::{ControlPlane, SOON};
use super::harness::{Customer, Node, chat, slowly};
use super::sse::Events;
use crate::config::Config;
use lorikeet_contract::link::FinishReason;
use reqwest::StatusCode;
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_node_serves_on_while_load_balancers_turn_away_and_then_refuses_new_requests() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let patient = |config: &mut Config| {
        slowly(config);
        config.drain.grace = Duration::from_secs(1);
    };
    let node = Node::ready(&control_plane, patient).await;
    let long = chat(json!({ "stream": true, "max_tokens": 500 }));
    let mut running = Events::of(node.post(customer.key.reveal(), &long).await);
    running.next().await.expect("it runs");

    node.tell_to_stop();
    let (status, body) = node.get("/ready", None).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("the node is draining"), "{body}");
    assert_eq!(node.get("/health", None).await.0, StatusCode::OK);
    node.chat(&customer, json!({})).await;

    let refused = async {
        loop {
            let response = node.post(customer.key.reveal(), &chat(json!({}))).await;
            if response.status() != StatusCode::OK {
                return response;
            }
        }
    };
    let refused = tokio::time::timeout(SOON, refused).await.expect("the grace time ends");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    let last = running.rest().await.pop().expect("a closing chunk");
    assert_eq!(last["choices"][0]["finish_reason"], "length", "it was let end");
    node.stop().await;
    let finals = control_plane.seen().finals_with(FinishReason::Length);
    let answers: Vec<_> = finals.iter().map(|record| record.completion_tokens).collect();
    assert_eq!(answers.iter().filter(|tokens| **tokens == 500).count(), 1, "{answers:?}");
    assert!(answers.iter().filter(|tokens| **tokens == 8).count() >= 1, "{answers:?}");
}
