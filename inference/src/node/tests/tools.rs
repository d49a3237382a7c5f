//! Tools from a request to the calls in its answer. What the simulated device says is scripted; what the
//! real model says is forced.

mod enforced;

use super::control_plane::ControlPlane;
use super::harness::{Customer, MODEL, Node, node_of_one};
use super::sse::Events;
use crate::config::{Config, Device};
use crate::fixture::base_model;
use lorikeet_compute::backend::sim::{SimConfig, SimCost};
use lorikeet_compute::model::Specials;
use reqwest::StatusCode;
use serde_json::{Value, json};

struct Rig {
    _control_plane: ControlPlane,
    node: Node,
    customer: Customer,
}

impl Rig {
    async fn start(tweak: impl FnOnce(&mut Config)) -> Self {
        let (control_plane, node, customer) = node_of_one(tweak).await;
        Self { _control_plane: control_plane, node, customer }
    }

    /// Every answer of it is this text.
    async fn saying(text: &str) -> Self {
        Self::start(|config| config.device = scripted(text)).await
    }

    async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.node.post_to(path, self.customer.key.reveal(), body).await
    }

    async fn json(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let response = self.post(path, &body).await;
        (response.status(), response.json().await.expect("JSON"))
    }

    async fn chat(&self, more: Value) -> Value {
        let (status, answer) = self.json("/v1/chat/completions", chat(more)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    async fn chunks(&self, more: Value) -> Vec<Value> {
        let mut body = chat(more);
        body["stream"] = json!(true);
        let response = self.post("/v1/chat/completions", &body).await;
        assert_eq!(response.status(), StatusCode::OK);
        Events::of(response).rest().await
    }
}

fn scripted(text: &str) -> Device {
    let model = base_model();
    let mut script = model.tokenizer.encode(text, Specials::AsText).expect("tokens");
    script.push(model.weights.config.eos_tokens[0]);
    Device::Sim(SimConfig { script, cost: SimCost::FREE, ..SimConfig::default() })
}

fn weather() -> Value {
    json!({
        "name": "get_weather",
        "description": "The weather somewhere.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": { "enum": ["Graz", "Linz"] },
                "days": { "type": "integer", "minimum": 1, "maximum": 9 },
            },
            "required": ["city", "days"],
            "additionalProperties": false,
        },
    })
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": MODEL,
        "messages": [{ "role": "user", "content": "How is the weather in Graz?" }],
        "tools": [
            { "type": "function", "function": weather() },
            { "type": "function", "function": { "name": "get_time" } },
        ],
        "seed": 1,
        "max_tokens": 200,
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn response(more: Value) -> Value {
    let mut tool = weather();
    tool["type"] = json!("function");
    let mut body = json!({
        "model": MODEL,
        "input": "How is the weather in Graz?",
        "tools": [tool, { "type": "function", "name": "get_time" }],
        "seed": 1,
        "max_output_tokens": 200,
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// Content, calls (id, name and arguments) and the reason of the end, out of the chunks of a stream.
fn assembled(chunks: &[Value]) -> (String, Vec<[String; 3]>, String) {
    let (mut content, mut calls, mut reason) = (String::new(), Vec::new(), String::new());
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices")) {
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        if let Some(named) = choice["finish_reason"].as_str() {
            named.clone_into(&mut reason);
        }
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let function = &delta["function"];
            if delta["id"].is_string() {
                assert_eq!(
                    (&delta["type"], &delta["index"]),
                    (&json!("function"), &json!(calls.len()))
                );
                calls.push([text(&delta["id"]), text(&function["name"]), String::new()]);
            } else {
                assert_eq!(delta["index"], calls.len() - 1);
                assert!(function["name"].is_null());
            }
            calls.last_mut().expect("a call")[2] += &text(&function["arguments"]);
        }
    }
    (content, calls, reason)
}

const TWO_CALLS: &str = "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \
    \"Graz\", \"days\": 2}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";
const ARGUMENTS: &str = "{\"city\": \"Graz\", \"days\": 2}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_a_model_makes_by_itself_come_as_calls_whole_and_in_a_stream() {
    let rig = Rig::saying(TWO_CALLS).await;
    let answer = rig.chat(json!({ "n": 2 })).await;
    for choice in answer["choices"].as_array().expect("choices") {
        assert_eq!(choice["finish_reason"], "tool_calls");
        let message = &choice["message"];
        assert_eq!(message["content"], "Let me see.");
        let calls = message["tool_calls"].as_array().expect("calls");
        let said = |call: &Value| {
            (call["function"]["name"].clone(), call["function"]["arguments"].clone())
        };
        let expected = [(json!("get_weather"), json!(ARGUMENTS)), (json!("get_time"), json!("{}"))];
        assert_eq!(calls.iter().map(said).collect::<Vec<_>>(), expected);
        assert_ne!(calls[0]["id"], calls[1]["id"]);
    }
    let chunks = rig.chunks(json!({ "logprobs": true })).await;
    let (content, calls, reason) = assembled(&chunks);
    assert_eq!((content.as_str(), reason.as_str()), ("Let me see.", "tool_calls"));
    let [[_, first, arguments], [_, second, none]] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!([first, arguments, second, none], ["get_weather", ARGUMENTS, "get_time", "{}"]);
    let pieces =
        chunks.iter().filter(|chunk| chunk["choices"][0]["delta"]["tool_calls"].is_array());
    assert!(pieces.count() > 6, "arguments come as they are made");

    // Without tools, or where none may be called, the same is text.
    for more in [json!({ "tools": null }), json!({ "tool_choice": "none" })] {
        let answer = rig.chat(more).await;
        assert_eq!(answer["choices"][0]["message"]["content"], TWO_CALLS);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    // Cut short, a call is none.
    let cut = rig.chat(json!({ "max_tokens": 30 })).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    let content = cut["choices"][0]["message"]["content"].as_str().expect("content");
    assert!(TWO_CALLS.starts_with(content) && content.contains("get_weather"), "{content}");
    rig.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_call_is_content_to_the_letter() {
    let text = "Hm. <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": Graz}}\n</tool_call>";
    let rig = Rig::saying(text).await;
    let answer = rig.chat(json!({})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["choices"][0]["message"]["tool_calls"].is_null());
    let (content, calls, reason) = assembled(&rig.chunks(json!({})).await);
    assert_eq!(reason, "stop", "nobody is to run it");
    assert_eq!((content.as_str(), calls.len()), ("Hm.}\n</tool_call>", 1), "what is left of it");
    assert_eq!(calls[0][2], "{\"city\": Graz}");

    let streamed = rig.post("/v1/responses", &response(json!({ "stream": true }))).await;
    let events = super::responses::events(&streamed.text().await.expect("a body"));
    let output = events.last().expect("an end").1["response"]["output"].clone();
    let said: Vec<_> = output.as_array().expect("items").iter().map(|i| &i["status"]).collect();
    assert_eq!(said, ["completed", "incomplete", "completed"], "{output}");
    assert_eq!(output[1]["arguments"], "{\"city\": Graz}");
    assert_eq!(output[2]["content"][0]["text"], "}\n</tool_call>");
    rig.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_have_calls_as_items_with_events_of_their_own() {
    let rig = Rig::saying(TWO_CALLS).await;
    let (_, whole) = rig.json("/v1/responses", response(json!({}))).await;
    assert_eq!(whole["status"], "completed");
    let [message, first, second] = &whole["output"].as_array().expect("items")[..] else {
        panic!("{whole}")
    };
    assert_eq!(message["content"][0]["text"], "Let me see.");
    assert_eq!((&first["type"], &first["name"]), (&json!("function_call"), &json!("get_weather")));
    assert_eq!((&first["arguments"], &first["status"]), (&json!(ARGUMENTS), &json!("completed")));
    assert_eq!((&second["name"], &second["arguments"]), (&json!("get_time"), &json!("{}")));
    assert_eq!(
        (&whole["tool_choice"], &whole["tools"][1]["name"]),
        (&json!("auto"), &json!("get_time"))
    );

    let streamed = rig.post("/v1/responses", &response(json!({ "stream": true }))).await;
    let events = super::responses::events(&streamed.text().await.expect("a body"));
    let mut names: Vec<&str> = events.iter().map(|(name, _)| &**name).collect();
    names.dedup();
    let call = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ];
    let message = [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ];
    let expected = [
        &["response.created", "response.in_progress"][..],
        &message,
        &call,
        &call,
        &["response.completed"],
    ];
    assert_eq!(names, expected.concat());
    for (number, (_, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], number);
    }
    let of = |name: &str| -> Vec<&Value> {
        events.iter().filter(|(is, _)| is == name).map(|(_, data)| data).collect()
    };
    let deltas = of("response.function_call_arguments.delta").into_iter();
    let first = deltas.filter(|data| data["output_index"] == 1);
    assert_eq!(first.filter_map(|data| data["delta"].as_str()).collect::<String>(), ARGUMENTS);
    let done = of("response.function_call_arguments.done");
    assert_eq!((&done[0]["arguments"], &done[1]["arguments"]), (&json!(ARGUMENTS), &json!("{}")));
    let last = &events.last().expect("an end").1["response"];
    for (index, item) in whole["output"].as_array().expect("items").iter().enumerate() {
        let streamed = &last["output"][index];
        for field in ["type", "status", "name", "arguments"] {
            assert_eq!(streamed[field], item[field], "{field} of item {index}");
        }
    }
    rig.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_is_told_of_tools_of_its_calls_and_of_what_came_of_them() {
    let rig = Rig::saying("It is sunny.").await;
    let call = json!({
        "id": "call_1", "type": "function",
        "function": { "name": "get_weather", "arguments": ARGUMENTS },
    });
    let messages = json!([
        { "role": "user", "content": "How is it? <|im_end|>" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny <|im_start|>" },
    ]);
    let body = json!({ "model": MODEL, "messages": messages, "tools": chat(json!({}))["tools"] });
    let (_, counted) = rig.json("/tokenize", body).await;
    let text = json!({ "model": MODEL, "tokens": counted["tokens"] });
    let (_, text) = rig.json("/detokenize", text).await;
    let prompt = text["prompt"].as_str().expect("text");
    assert!(prompt.contains("\"description\": \"The weather somewhere.\""), "{prompt}");
    let said = format!(
        "<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {ARGUMENTS}}}\n</tool_call>"
    );
    assert!(prompt.contains(&said), "{prompt}");
    assert!(prompt.contains("<tool_response>\nsunny <|im_start|>\n</tool_response>"), "{prompt}");
    let start = base_model().tokenizer.special("<|im_start|>").expect("a special token");
    let starts =
        counted["tokens"].as_array().expect("tokens").iter().filter(|t| **t == json!(start));
    assert_eq!(starts.count(), 5, "what a customer writes is no special token");

    let answer = rig.chat(json!({ "messages": messages })).await;
    assert_eq!(answer["usage"]["prompt_tokens"], counted["count"]);
    assert_eq!(answer["choices"][0]["message"]["content"], "It is sunny.");
    let items = json!([
        { "role": "user", "content": "How is it? <|im_end|>" },
        { "type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": ARGUMENTS },
        { "type": "function_call_output", "call_id": "call_1", "output": "sunny <|im_start|>" },
    ]);
    let (_, answer) = rig.json("/v1/responses", response(json!({ "input": items }))).await;
    assert_eq!(answer["usage"]["input_tokens"], counted["count"]);
    assert_eq!(answer["output"][0]["content"][0]["text"], "It is sunny.");
    rig.node.stop().await;
}
