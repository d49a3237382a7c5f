//! Answers that follow a grammar, whatever the model would rather say: the simulated device draws
//! tokens at random.

use super::harness::{chat, node_of_one, real_device, text};
use super::sse::{self, Events};
use crate::config::Config;
use reqwest::StatusCode;
use serde_json::{Value, json};

pub fn under_schema(schema: &Value) -> Value {
    let schema = json!({ "name": "answer", "schema": schema, "strict": true });
    json!({ "type": "json_schema", "json_schema": schema })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spelling_of_a_constraint_is_followed_also_in_a_stream_and_by_every_choice() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    let is_choice = |text: &str| ["left", "right"].contains(&text);
    let is_digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let is_object = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|v| v.is_object());
    let schema = json!({
        "type": "object", "properties": { "a": { "type": "boolean" } }, "required": ["a"],
        "additionalProperties": false,
    });
    let sides = json!(["left", "right"]);
    let grammar = "start: \"left\" | \"right\"";
    type Check<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(Value, Check<'_>); 9] = [
        (json!({ "guided_choice": sides }), &is_choice),
        (json!({ "guided_regex": "[0-9]{5}" }), &is_digits),
        (json!({ "guided_grammar": grammar }), &is_choice),
        (json!({ "guided_json": schema }), &is_object),
        (json!({ "guided_json": schema.to_string() }), &is_object),
        (json!({ "structured_outputs": { "choice": sides } }), &is_choice),
        (json!({ "structured_outputs": { "regex": "[0-9]{5}" } }), &is_digits),
        (json!({ "structured_outputs": { "grammar": grammar } }), &is_choice),
        (json!({ "structured_outputs": { "json": schema } }), &is_object),
    ];
    for (mut more, holds) in cases {
        more["max_tokens"] = 100.into();
        more["n"] = 3.into();
        let answer = node.chat(&customer, more.clone()).await;
        for choice in answer["choices"].as_array().expect("choices") {
            assert!(holds(choice["message"]["content"].as_str().expect("text")), "{choice}");
            assert_eq!(choice["finish_reason"], "stop");
        }
        more["n"] = 1.into();
        more["stream"] = true.into();
        let chunks = Events::of(node.post(customer.key.reveal(), &chat(more)).await).rest().await;
        assert_eq!(sse::text(&chunks), text(&answer), "the same seed, the same text");
    }
    let prompt = json!({ "model": "base", "prompt": "A side:", "guided_choice": sides });
    let answer = node.post_to("/v1/completions", customer.key.reveal(), &prompt).await;
    let answer: Value = answer.json().await.expect("JSON");
    assert!(is_choice(answer["choices"][0]["text"].as_str().expect("text")), "{answer}");

    let format = json!({ "type": "json_schema", "name": "a", "schema": schema, "strict": true });
    let response = json!({ "model": "base", "input": "hi", "text": { "format": format } });
    let response = node.post_to("/v1/responses", customer.key.reveal(), &response).await;
    let response: Value = response.json().await.expect("JSON");
    let content = response["output"][0]["content"][0]["text"].as_str().expect("text");
    assert!(is_object(content), "{response}");
    assert_eq!((&response["text"]["format"], &response["status"]), (&format, &json!("completed")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_stops_and_least_lengths_keep_their_meaning_beside_a_grammar() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let cut = node.chat(&customer, json!({ "guided_regex": "[a-z]{400}", "max_tokens": 3 })).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert!(text(&cut).bytes().all(|b| b.is_ascii_lowercase()));
    let stopped = json!({ "guided_regex": "one two three", "stop": "two", "max_tokens": 20 });
    let stopped = node.chat(&customer, stopped).await;
    assert_eq!((text(&stopped), &stopped["choices"][0]["finish_reason"]), ("one ", &json!("stop")));
    // A grammar that has come to its end has nothing more to say.
    let more = json!({ "guided_choice": ["yes", "no"], "min_tokens": 7, "ignore_eos": true });
    let short = node.chat(&customer, more).await;
    assert!(["yes", "no"].contains(&text(&short)));
    let long = json!({ "guided_regex": "(ab)*", "min_tokens": 6, "max_tokens": 50 });
    let long = node.chat(&customer, long).await;
    assert!(long["usage"]["completion_tokens"].as_u64().expect("a count") >= 6, "{long}");
    assert_eq!(text(&long).replace("ab", ""), "");
    control_plane.until("their finals", |seen| seen.finals().len() == 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_followed_is_a_400_that_names_the_field_and_the_reason() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    let key = customer.key.reveal();
    let schema = json!({ "properties": { "a": { "unevaluatedItems": false } } });
    let name = json!({ "type": "json_schema", "json_schema": { "schema": {} } });
    for (more, reason) in [
        (
            json!({ "response_format": under_schema(&schema) }),
            "at `response_format.json_schema.schema.properties.a`",
        ),
        (json!({ "guided_json": { "$ref": "#/$defs/none" } }), "none"),
        (json!({ "response_format": name }), "name"),
        (json!({ "response_format": { "type": "xml" } }), "xml"),
        (json!({ "guided_regex": "[" }), "["),
        (json!({ "guided_choice": [] }), "no choice"),
        (json!({ "guided_choice": [1] }), "string"),
        (json!({ "guided_json": "{" }), "EOF"),
        (json!({ "structured_outputs": {} }), "exactly one"),
        (json!({ "structured_outputs": { "regex": "a", "choice": ["a"] } }), "exactly one"),
        (json!({ "structured_outputs": { "xml": "a" } }), "xml"),
        (json!({ "guided_grammar": "start: \"a\"", "guided_regex": "a" }), "together"),
    ] {
        let (status, error) = node.refused(key, more.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        let param = error["param"].as_str().expect("a field");
        let field = param.split('.').next().expect("a first part");
        assert!(more.get(field).is_some(), "{error}");
        assert!(error["message"].as_str().expect("text").contains(reason), "{error}");
    }
    let (_, error) = node.refused(key, json!({ "response_format": under_schema(&schema) })).await;
    assert_eq!(error["param"], "response_format.json_schema.schema.properties.a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_model_answers_in_json() {
    let real = |config: &mut Config| config.device = real_device();
    let (_control_plane, node, customer) = node_of_one(real).await;
    let schema = json!({
        "type": "object", "required": ["name", "colours", "can_fly"], "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "maxLength": 20 },
            "colours": {
                "type": "array", "items": { "enum": ["red", "green", "blue"] },
                "minItems": 2, "maxItems": 3,
            },
            "can_fly": { "type": "boolean" },
        },
    });
    let more = json!({
        "response_format": under_schema(&schema), "max_tokens": 100, "temperature": 0, "logprobs": true,
    });
    let answer = node.chat(&customer, more).await;
    let value: Value = serde_json::from_str(text(&answer)).expect("JSON");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(value["colours"].as_array().map(|c| c.len() >= 2), Some(true), "{value}");
    assert!(value["name"].is_string() && value["can_fly"].is_boolean(), "{value}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grammar_made_to_cost_ends_its_own_request_and_others_notice_nothing() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    // How long half of the pieces of an answer let wait, and the answer.
    let pace = async |more: Value| {
        let body = json!({ "stream": true, "max_tokens": 300, "min_tokens": 300 });
        let mut body = chat(body);
        body.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("one"));
        let mut events = Events::of(node.post(customer.key.reveal(), &body).await);
        let (mut gaps, mut last) = (Vec::new(), std::time::Instant::now());
        while events.next().await.is_some() {
            gaps.push(last.elapsed());
            last = std::time::Instant::now();
        }
        gaps.sort_unstable();
        gaps[gaps.len() / 2]
    };
    let free = || pace(json!({}));
    let guided = || pace(json!({ "guided_regex": "[a-z ]{2000}" }));
    let alone = (free().await, guided().await);
    let ambiguous = json!({
        "guided_grammar": "start: a\na: a a | \"x\" | \"\"", "min_tokens": 2000, "max_tokens": 2000,
    });
    let costly = || node.refused(customer.key.reveal(), ambiguous.clone());
    let beside = async { tokio::join!(free(), guided()) };
    let (first, second, third, beside) = tokio::join!(costly(), costly(), costly(), beside);
    for (status, error) in [first, second, third] {
        assert_eq!((status, &error["param"]), (StatusCode::BAD_REQUEST, &json!("guided_grammar")));
        assert!(error["message"].as_str().expect("text").contains("too complex"), "{error}");
    }
    let (limit, slack) = (3, std::time::Duration::from_millis(4));
    assert!(beside.0 < alone.0 * limit + slack, "{:?}, {:?} alone", beside.0, alone.0);
    assert!(beside.1 < alone.1 * limit + slack, "{:?}, {:?} alone", beside.1, alone.1);
}
