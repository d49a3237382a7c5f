//! Every status that the node refuses with, met from outside: each says the same things in the same places.

use super::control_plane::{ControlPlane, SOON};
use super::harness::{Customer, Node, adapter, chat, key, tenant};
use super::sse::Events;
use lorikeet_contract::link::{AdapterState, KeyResource, Limits, TenantResource};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;

struct Refusal {
    status: u16,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<&'static str>,
}

const fn invalid(status: u16, code: &'static str) -> Refusal {
    Refusal { status, kind: "invalid_request_error", code: Some(code), param: None }
}

const fn of_model(status: u16, kind: &'static str, code: &'static str) -> Refusal {
    Refusal { status, kind, code: Some(code), param: Some("model") }
}

async fn assert_refused(request: RequestBuilder, expected: Refusal) {
    let response = request.timeout(SOON).send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body: Value = response.json().await.expect("JSON");
    let error = &body["error"];
    assert_eq!(status, expected.status, "{body}");
    assert_eq!(error["type"], expected.kind, "{body}");
    assert_eq!(error["code"], json!(expected.code), "{body}");
    assert_eq!(error["param"], json!(expected.param), "{body}");
    assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{body}");
    let id = headers["x-request-id"].to_str().expect("text");
    assert!(id.starts_with("req_") && error["request_id"] == id, "{id}: {body}");
    assert_eq!(headers["content-type"], "application/json");
    let may_be_tried_again =
        matches!(status, 429 | 503) || expected.code == Some("idempotency_key_in_use");
    assert_eq!(headers.contains_key("retry-after"), may_be_tried_again, "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_its_status_type_code_param_message_and_request_id() {
    let [customer, reader, suspended, busy] = std::array::from_fn(|_| Customer::new());
    let one = Limits { max_concurrency: Some(1), ..Limits::default() };
    let resources = [
        customer.resources(),
        vec![
            adapter(customer.adapter("draft", AdapterState::Pending)),
            adapter(customer.adapter("lost", AdapterState::Servable)),
            tenant(reader.tenant_resource()),
            key(KeyResource { scopes: vec!["read".into()], ..reader.key_resource() }),
            tenant(TenantResource { suspended: true, ..suspended.tenant_resource() }),
            key(suspended.key_resource()),
            tenant(TenantResource { limits: Some(one), ..busy.tenant_resource() }),
            key(busy.key_resource()),
        ],
    ];
    let control_plane = ControlPlane::start(resources.concat());
    let read_body_within = Duration::from_millis(500);
    let node = Node::ready(&control_plane, |c| c.read_body_within = read_body_within).await;
    let client = reqwest::Client::new();
    let to = |customer: &Customer, path: &str| {
        client.post(node.url(path)).bearer_auth(customer.key.reveal())
    };
    let chats = |more: Value| to(&customer, "/v1/chat/completions").json(&chat(more));

    let named = |param| Refusal { code: None, param: Some(param), ..invalid(400, "") };
    assert_refused(chats(json!({ "temperature": 9 })), named("temperature")).await;
    assert_refused(chats(json!({ "frobnicate": 1 })), named("frobnicate")).await;
    let too_long = invalid(400, "context_length_exceeded");
    assert_refused(chats(json!({ "max_tokens": 1_000_000 })), too_long).await;
    let no_json = to(&customer, "/v1/completions").body("{");
    assert_refused(no_json, Refusal { code: None, ..invalid(400, "") }).await;

    let anonymous = client.get(node.url("/v1/models"));
    assert_refused(anonymous, invalid(401, "invalid_api_key")).await;
    let chat_of = |who: &Customer| to(who, "/v1/chat/completions").json(&chat(json!({})));
    assert_refused(chat_of(&reader), invalid(403, "insufficient_scope")).await;
    assert_refused(chat_of(&suspended), invalid(403, "account_suspended")).await;
    let no_model = of_model(404, "invalid_request_error", "model_not_found");
    assert_refused(chats(json!({ "model": "nobody" })), no_model).await;
    assert_refused(to(&customer, "/v1/nothing"), invalid(404, "not_found")).await;
    let method = client.delete(node.url("/v1/chat/completions")).bearer_auth(customer.key.reveal());
    assert_refused(method, invalid(405, "method_not_allowed")).await;

    let endless = futures::stream::pending::<Result<Vec<u8>, Infallible>>();
    let slow = to(&customer, "/v1/chat/completions").body(reqwest::Body::wrap_stream(endless));
    assert_refused(slow, invalid(408, "request_timeout")).await;
    let not_ready = of_model(409, "invalid_request_error", "adapter_not_ready");
    assert_refused(chats(json!({ "model": "draft" })), not_ready).await;
    let large = to(&customer, "/v1/completions").body(vec![b' '; (4 << 20) + 1]);
    assert_refused(large, invalid(413, "request_too_large")).await;

    let long = json!({ "stream": true, "max_tokens": 4000 });
    let once = |more: Value| chats(more).header("idempotency-key", "once");
    let response = once(long.clone()).send().await.expect("an answer");
    let mut running = Events::of(response);
    running.next().await.expect("it runs");
    assert_refused(once(long.clone()), invalid(409, "idempotency_key_in_use")).await;
    assert_refused(once(json!({})), invalid(422, "idempotency_key_reused")).await;

    let response = to(&busy, "/v1/chat/completions").json(&chat(long)).send().await;
    let mut of_busy = Events::of(response.expect("an answer"));
    of_busy.next().await.expect("it runs");
    let limit = Refusal { kind: "rate_limit_error", ..invalid(429, "concurrency_limit_exceeded") };
    assert_refused(chat_of(&busy), limit).await;

    let lost = of_model(503, "server_error", "adapter_load_failed");
    assert_refused(chats(json!({ "model": "lost" })), lost).await;
    drop((running, of_busy));
    node.stop().await;
}
