use super::control_plane::{ControlPlane, SOON};
use super::harness::{Customer, Node, chat, node_of_one};
use super::sse::Events;
use lorikeet_contract::link::FinishReason;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

async fn send(node: &Node, customer: &Customer, key: &str, body: &Value) -> Response {
    let request = reqwest::Client::new().post(node.url("/v1/chat/completions"));
    let request = request.timeout(SOON).bearer_auth(customer.key.reveal());
    request.header("idempotency-key", key).json(body).send().await.expect("an answer")
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.expect("JSON");
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn replayed(response: &Response) -> bool {
    response.headers().get("idempotent-replayed").is_some_and(|value| value == "true")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_gets_the_same_answer_whole_or_streamed_and_only_the_first_is_billed() {
    let (customer, other) = (Customer::new(), Customer::new());
    let control_plane = ControlPlane::start([customer.resources(), other.resources()].concat());
    let node = Node::ready(&control_plane, |_| {}).await;
    for (key, more) in [("whole", json!({})), ("streamed", json!({ "stream": true }))] {
        let body = chat(more);
        let first = send(&node, &customer, key, &body).await;
        assert_eq!(first.status(), StatusCode::OK);
        assert!(!replayed(&first));
        let kind = first.headers()["content-type"].clone();
        let first = first.bytes().await.expect("a body");
        for _ in 0..3 {
            let again = send(&node, &customer, key, &body).await;
            assert!(again.status() == StatusCode::OK && replayed(&again));
            assert_eq!(again.headers()["content-type"], kind);
            assert_eq!(again.bytes().await.expect("a body"), first);
        }
        let another = send(&node, &customer, key, &chat(json!({ "max_tokens": 3 }))).await;
        assert_eq!(code(another).await, (422, "idempotency_key_reused".into()));
        // Another customer's keys are its own.
        let theirs = send(&node, &other, key, &body).await;
        assert!(theirs.status() == StatusCode::OK && !replayed(&theirs));
    }
    let seen = control_plane.until("finals of all four", |s| s.finals().len() >= 4).await;
    let of_customer = seen.finals().into_iter();
    let tenant = customer.tenant.to_string();
    assert_eq!(of_customer.filter(|r| r.tenant_id == tenant).count(), 2, "one for each key");
    assert_eq!(seen.finals().len(), 4);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_of_what_is_running_is_told_so_and_one_after_an_error_runs() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    let long = chat(json!({ "stream": true, "max_tokens": 4000 }));
    let mut running = Events::of(send(&node, &customer, "long", &long).await);
    running.next().await.expect("it runs");
    let repeat = send(&node, &customer, "long", &long).await;
    assert_eq!(code(repeat).await, (409, "idempotency_key_in_use".into()));

    let wrong = chat(json!({ "model": "nobody" }));
    assert_eq!(send(&node, &customer, "k", &wrong).await.status(), StatusCode::NOT_FOUND);
    let right = send(&node, &customer, "k", &chat(json!({}))).await;
    assert_eq!(right.status(), StatusCode::OK, "an error does not use the key up");
    let odd = send(&node, &customer, &"k".repeat(256), &chat(json!({}))).await;
    assert_eq!(odd.status(), StatusCode::BAD_REQUEST);
    drop(running);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lost_the_connection_finds_the_whole_answer_and_pays_once() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let body = chat(json!({ "stream": true, "max_tokens": 300, "ignore_eos": true }));
    let mut cut = Events::of(send(&node, &customer, "k", &body).await);
    cut.next().await.expect("it runs");
    drop(cut);
    let answered = async {
        loop {
            let again = send(&node, &customer, "k", &body).await;
            if again.status() == StatusCode::OK {
                return again;
            }
            assert_eq!(again.status(), StatusCode::CONFLICT);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let again = tokio::time::timeout(SOON, answered).await.expect("it ends");
    assert!(replayed(&again));
    let events = Events::of(again).rest().await;
    assert_eq!(events.last().expect("an event")["choices"][0]["finish_reason"], "length");
    let seen = control_plane.until("a final", |s| !s.finals().is_empty()).await;
    let [paid] = &seen.finals()[..] else { panic!("{:?}", seen.finals()) };
    assert_eq!((paid.completion_tokens, paid.finish_reason()), (300, FinishReason::Length));
    node.stop().await;
}
