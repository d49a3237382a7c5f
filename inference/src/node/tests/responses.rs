use super::harness::{MODEL, node_of_one};
use reqwest::StatusCode;
use serde_json::{Value, json};

fn request(more: Value) -> Value {
    let mut body = json!({
        "model": MODEL, "input": "Tell me of lorikeets.", "seed": 1, "max_output_tokens": 8,
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// Name and data of each event.
pub fn events(body: &str) -> Vec<(String, Value)> {
    let events = body.split_terminator("\n\n").map(|event| {
        let (name, data) = event.split_once('\n').expect("a name and data");
        let name = name.strip_prefix("event: ").expect("a name").to_owned();
        let data = data.strip_prefix("data: ").expect("data");
        (name, serde_json::from_str(data).expect("JSON"))
    });
    events.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_comes_whole_or_as_events_in_their_order_and_both_say_the_same() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    let post =
        async |more| node.post_to("/v1/responses", customer.key.reveal(), &request(more)).await;
    let response = post(json!({ "metadata": { "a": "b" } })).await;
    assert_eq!(response.status(), StatusCode::OK);
    let whole: Value = response.json().await.expect("JSON");
    let text = whole["output"][0]["content"][0]["text"].as_str().expect("text");
    assert!(!text.is_empty());
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(whole["usage"]["output_tokens"], 8);
    assert_eq!(whole["metadata"], json!({ "a": "b" }));
    assert_eq!(whole["store"], false);

    let include = json!(["message.output_text.logprobs"]);
    let streamed = post(json!({ "stream": true, "include": include, "top_logprobs": 1 })).await;
    assert_eq!(streamed.headers()["content-type"], "text/event-stream");
    let events = events(&streamed.text().await.expect("a body"));
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!(
            (data["type"].as_str(), &data["sequence_number"]),
            (Some(&**name), &json!(number))
        );
    }
    let mut names: Vec<&str> = events.iter().map(|(name, _)| &**name).collect();
    names.dedup();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ];
    assert_eq!(names, expected);
    let deltas = events.iter().filter_map(|(_, data)| data["delta"].as_str());
    assert_eq!(deltas.collect::<String>(), text);
    let last = &events.last().expect("an end").1["response"];
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    assert_eq!(last["output"][0]["content"][0]["text"], text);
    let logprobs = last["output"][0]["content"][0]["logprobs"].as_array().expect("entries");
    assert_eq!(logprobs[0]["top_logprobs"].as_array().expect("the likeliest").len(), 1);

    let chat = json!({
        "messages": [{ "role": "user", "content": "Tell me of lorikeets." }], "max_tokens": 8,
    });
    let asked = node.chat(&customer, chat).await;
    assert_eq!(super::harness::text(&asked), text, "the same prompt, the same seed");
    let refused = post(json!({ "previous_response_id": "resp_1" })).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_breaks_off_says_so_in_its_last_event() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let body = request(json!({ "stream": true, "max_output_tokens": 4000 }));
    let mut response = node.post_to("/v1/responses", customer.key.reveal(), &body).await;
    let mut seen = response.chunk().await.expect("a first piece").expect("some").to_vec();
    let target = lorikeet_contract::link::revocation::Target::KeyId(customer.key_id.to_string());
    control_plane.revoke(target).await;
    while let Some(bytes) = response.chunk().await.expect("the connection holds") {
        seen.extend_from_slice(&bytes);
    }
    let events = events(std::str::from_utf8(&seen).expect("text"));
    let (name, data) = events.last().expect("an end");
    assert_eq!(name, "response.failed");
    assert_eq!(data["response"]["status"], "failed");
    assert_eq!(data["response"]["error"]["code"], "access_revoked");
    node.stop().await;
}
