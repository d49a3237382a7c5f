use super::control_plane::ControlPlane;
use super::harness::{Customer, Node, chat, node_of_one, real_device, store_adapter, text};
use super::sse::{self, Events};
use crate::config::Config;
use crate::fixture::base_model;
use lorikeet_contract::link::{FinishReason, UsageRecord};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// Completion tokens of the final record of a response.
fn billed(finals: &[UsageRecord], response: &Value) -> u64 {
    let id = response["id"].as_str().and_then(|id| id.strip_prefix("chatcmpl-")).expect("an id");
    let id = format!("req_{id}");
    finals.iter().find(|f| f.request_id == id).expect("its final").completion_tokens
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_what_the_whole_answer_says_and_both_are_billed_as_they_say() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let whole = node.chat(&customer, json!({ "max_tokens": 24 })).await;
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "base");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    let prompt = whole["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(whole["usage"]["total_tokens"], prompt + 24);

    let request = chat(
        json!({ "max_tokens": 24, "stream": true, "stream_options": { "include_usage": true } }),
    );
    let response = node.post(customer.key.reveal(), &request).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().replace("req_", "chatcmpl-");
    let chunks = Events::of(response).rest().await;
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(sse::text(&chunks), text(&whole), "the same seed, the same text");
    assert!(chunks.iter().all(|c| c["id"] == id && c["object"] == "chat.completion.chunk"));
    let (usage, before) = chunks.split_last().expect("chunks");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["prompt_tokens"], prompt);
    assert_eq!(usage["usage"]["completion_tokens"], 24);
    assert!(before.iter().all(|c| c["usage"].is_null()));
    let last = before.last().expect("a closing chunk");
    assert_eq!(last["choices"][0]["finish_reason"], "length");

    let seen = control_plane.until("both finals", |s| s.finals().len() == 2).await;
    assert_eq!(billed(&seen.finals(), &whole), 24);
    assert_eq!(billed(&seen.finals(), usage), 24);
    for record in seen.finals() {
        assert_eq!(record.finish_reason(), FinishReason::Length);
        assert_eq!(record.prompt_tokens, prompt);
        assert_eq!(record.key_id, customer.key_id.to_string());
        assert!(record.first_token_unix_ms >= record.started_unix_ms);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_string_across_token_borders_ends_the_answer_and_is_never_shown() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let free = node.chat(&customer, json!({ "max_tokens": 32 })).await;
    let free = text(&free).to_owned();
    // From the middle of one token into another: the simulation's tokens are several characters long.
    let from = free.char_indices().nth(free.chars().count() / 3).expect("a character").0;
    let stop: String = free[from..].chars().take(14).collect();
    let tokens = base_model()
        .tokenizer
        .encode(&stop, lorikeet_compute::model::Specials::AsText)
        .expect("text has tokens")
        .len();
    assert!(tokens > 1, "`{stop}` crosses a border");
    let expected = &free[..free.find(&stop).expect("it is there")];

    let stopped = node.chat(&customer, json!({ "max_tokens": 32, "stop": stop })).await;
    assert_eq!(text(&stopped), expected);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let used = stopped["usage"]["completion_tokens"].as_u64().expect("a count");
    assert!(used < 32, "{used}");

    let several = json!(["never in there", stop]);
    let request = chat(json!({ "max_tokens": 32, "stop": several, "stream": true }));
    let mut events = Events::of(node.post(customer.key.reveal(), &request).await);
    let mut shown = String::new();
    while let Some(event) = events.next().await {
        shown += &sse::text(&[event]);
        assert!(expected.starts_with(&shown), "what was shown is never taken back");
    }
    assert_eq!(shown, expected);
    let seen = control_plane.until("all finals", |s| s.finals().len() == 3).await;
    assert_eq!(billed(&seen.finals(), &stopped), used);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_cover_the_text_that_was_shown() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    let more = json!({ "logprobs": true, "top_logprobs": 2 });
    let answer = node.chat(&customer, more).await;
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().expect("entries");
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().expect("bytes").clone())
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), text(&answer));
    assert!(entries.iter().all(|entry| entry["logprob"].as_f64().is_some_and(|p| p <= 0.0)));
    let without = node.chat(&customer, json!({})).await;
    assert_eq!(without["choices"][0]["logprobs"], Value::Null);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_answers_under_its_name_and_otherwise_than_the_base() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let published = store_adapter(&node, &customer, "sailor", "pirate").expect("the kit's own");
    let version_id = published.id.clone();
    control_plane.publish(vec![published]).await;
    control_plane.acknowledged(1).await;

    let base = node.chat(&customer, json!({})).await;
    let adapted = node.chat(&customer, json!({ "model": "sailor" })).await;
    assert_eq!(adapted["model"], "sailor@1", "the version that answered");
    assert_ne!(adapted["system_fingerprint"], base["system_fingerprint"]);
    assert_ne!(text(&adapted), text(&base));
    let pinned = node.chat(&customer, json!({ "model": "sailor@1" })).await;
    assert_eq!(text(&pinned), text(&adapted));
    let seen = control_plane.until("the finals", |s| s.finals().len() == 3).await;
    let versions: Vec<_> = seen.finals().into_iter().map(|f| f.adapter_version_id).collect();
    assert_eq!(versions, [String::new(), version_id.clone(), version_id]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_served_is_refused_before_it_costs_anything() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let key = customer.key.reveal();
    let context = base_model().weights.config.spec.context_length;
    let long = "lorikeet ".repeat(context as usize);
    let message = |content: &str| json!([{ "role": "user", "content": content }]);
    let (status, error) = node.refused(key, json!({ "messages": message(&long) })).await;
    assert_eq!((status.as_u16(), &error["code"]), (400, &json!("context_length_exceeded")));
    assert!(error["message"].as_str().unwrap().contains(&format!("is {context} tokens")));
    let (_, error) = node.refused(key, json!({ "max_tokens": context })).await;
    assert_eq!(error["code"], "context_length_exceeded");

    let (status, error) = node.refused(key, json!({ "best_of": 2 })).await;
    assert_eq!((status.as_u16(), &error["param"]), (400, &json!("best_of")));
    assert_eq!(error["type"], "invalid_request_error");
    let (status, _) = node.refused(key, json!({ "user": "x".repeat(5 << 20) })).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let wrong_method = node.get("/v1/chat/completions", Some(key)).await;
    assert_eq!(wrong_method.0, StatusCode::METHOD_NOT_ALLOWED);
    assert!(wrong_method.1.contains("method_not_allowed"));
    let response = node.post(key, &chat(json!({ "temperature": 9 }))).await;
    let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
    let error: Value = response.json().await.expect("JSON");
    assert_eq!(error["error"]["request_id"], id);
    let nowhere = node.get("/v2/models", None).await;
    assert_eq!(nowhere.0, StatusCode::NOT_FOUND);
    assert!(nowhere.1.contains("\"error\""));

    node.chat(&customer, json!({})).await;
    let seen = control_plane.until("the one final", |s| !s.finals().is_empty()).await;
    assert_eq!(seen.usage().count(), 2, "nothing refused was opened");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_model_and_its_adapters_answer_as_the_kits_references_say_all_at_once() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let real = |config: &mut Config| config.device = real_device();
    let node = Node::ready(&control_plane, real).await;
    let names = ["pirate", "json", "sentiment"];
    let adapters =
        names.map(|name| store_adapter(&node, &customer, name, name).expect("in the kit"));
    control_plane.publish(adapters.to_vec()).await;
    control_plane.acknowledged(1).await;

    let references = names.map(|name| (name, lorikeet_kit::reference(Some(name))));
    let cases = references.iter().flat_map(|(name, r)| r.cases.iter().map(move |c| (*name, c)));
    let asked = cases.map(async |(name, case)| {
        let messages = case.messages.iter().map(|m| json!({"role": m.role, "content": m.content}));
        let more = json!({
            "model": name, "messages": messages.collect::<Vec<_>>(), "temperature": 0,
            "max_tokens": 32, "stream": true, "stream_options": { "include_usage": true },
        });
        let response = node.post(customer.key.reveal(), &chat(more)).await;
        assert_eq!(response.status(), StatusCode::OK);
        let chunks = Events::of(response).rest().await;
        assert_eq!(sse::text(&chunks), case.text, "{name} {}", case.id);
        let [.., closing, usage] = &chunks[..] else { panic!("a closing chunk and the counts") };
        assert_eq!(closing["choices"][0]["finish_reason"], case.finish);
        assert_eq!(usage["usage"]["prompt_tokens"], case.prompt_ids.len());
        assert_eq!(usage["usage"]["completion_tokens"], case.tokens.len());
    });
    let count = futures::future::join_all(asked).await.len();
    let seen = control_plane.until("all finals", |s| s.finals().len() == count).await;
    let billed: u64 = seen.finals().iter().map(|f| f.completion_tokens).sum();
    let expected = references.iter().flat_map(|(_, r)| &r.cases).map(|c| c.tokens.len() as u64);
    assert_eq!(billed, expected.sum::<u64>());
    node.stop().await;
}
