//! Calls and answers that must be valid, and what cannot be.

use super::super::harness::real_device;
use super::{Rig, assembled, chat, response, scripted, weather};
use crate::config::ToolCalls;
use lorikeet_compute::model::ToolFormat;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_forced_is_made_by_the_real_model_in_every_format() {
    for format in
        [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral, ToolFormat::MistralV11]
    {
        let rig = Rig::start(|config| {
            config.device = real_device();
            config.tool_calls = ToolCalls::As(format);
        })
        .await;
        let named = json!({ "type": "function", "function": { "name": "get_weather" } });
        let answer = rig.chat(json!({ "tool_choice": named, "temperature": 0 })).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let [call] = &choice["message"]["tool_calls"].as_array().expect("calls")[..] else {
            panic!("one call: {answer}")
        };
        let arguments = call["function"]["arguments"].as_str().expect("text");
        let parsed: Value = serde_json::from_str(arguments).expect("JSON");
        assert!(
            ["Graz", "Linz"].contains(&parsed["city"].as_str().expect("a city")),
            "{arguments}"
        );
        assert!((1..=9).contains(&parsed["days"].as_i64().expect("a number")), "{arguments}");
        let chunks = rig.chunks(json!({ "tool_choice": named, "temperature": 0 })).await;
        let (content, calls, reason) = assembled(&chunks);
        assert_eq!((content.as_str(), reason.as_str()), ("", "tool_calls"));
        assert_eq!((&*calls[0][1], &*calls[0][2], calls.len()), ("get_weather", arguments, 1));

        let required = json!({ "tool_choice": "required", "parallel_tool_calls": false });
        let (_, answer) = rig.json("/v1/responses", response(required)).await;
        assert_eq!(answer["output"][0]["type"], "function_call", "{answer}");
        assert_eq!(answer["output"].as_array().expect("items").len(), 1);
        rig.node.stop().await;
    }
}

/// A response format.
fn as_json(schema: &Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema } })
}

fn strict() -> Value {
    let mut function = weather();
    function["strict"] = json!(true);
    json!([{ "type": "function", "function": function }])
}

fn assert_valid(call: &Value) {
    let arguments = call["function"]["arguments"].as_str().expect("text");
    let parsed: Value = serde_json::from_str(arguments).expect("JSON");
    assert!(["Graz", "Linz"].contains(&parsed["city"].as_str().expect("a city")), "{arguments}");
    assert!((1..=9).contains(&parsed["days"].as_i64().expect("a number")), "{arguments}");
}

/// What it would say of itself is a call with other arguments than there may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_function_gets_valid_arguments_of_a_model_that_need_not_call_it() {
    for (format, said) in [
        (
            ToolFormat::Hermes,
            "I see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"",
        ),
        (ToolFormat::Llama3, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\""),
        (
            ToolFormat::Mistral,
            "I see.[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"",
        ),
        (ToolFormat::MistralV11, "I see.[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\""),
    ] {
        let rig = Rig::start(|config| {
            config.device = scripted(said);
            config.tool_calls = ToolCalls::As(format);
        })
        .await;
        let answer = rig.chat(json!({ "tools": strict(), "max_tokens": 80 })).await;
        let message = &answer["choices"][0]["message"];
        let said_before = message["content"].as_str().unwrap_or_default();
        assert!(said_before.starts_with("I see.") || format == ToolFormat::Llama3, "{answer}");
        assert_valid(&message["tool_calls"][0]);
        let free = rig.chat(json!({ "max_tokens": 80 })).await;
        assert!(free["choices"][0]["message"]["tool_calls"].is_null(), "{free}");
        rig.node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_tools_a_response_format_is_that_of_an_answer_that_calls_none() {
    let schema = json!({
        "type": "object",
        "properties": { "kind": { "enum": ["a", "b"] } },
        "required": ["kind"],
        "additionalProperties": false,
    });
    let format = as_json(&schema);
    let asked = json!({ "tools": strict(), "response_format": format });
    let rig = Rig::saying("{\"kind\": \"c").await;
    let answer = rig.chat(asked.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "{answer}");
    let content = choice["message"]["content"].as_str().expect("text");
    let parsed: Value = serde_json::from_str(content).expect("JSON");
    assert!(["a", "b"].contains(&parsed["kind"].as_str().expect("a kind")), "{content}");
    rig.node.stop().await;

    let rig =
        Rig::saying("<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\"").await;
    let mut one = asked.clone();
    one["parallel_tool_calls"] = json!(false);
    let mut forced = one.clone();
    forced["tool_choice"] = json!("required");
    for asked in [one, forced] {
        let answer = rig.chat(asked).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        assert_valid(&choice["message"]["tool_calls"][0]);
    }
    rig.node.stop().await;

    let rig = Rig::start(|config| config.tool_calls = ToolCalls::As(ToolFormat::Llama3)).await;
    let (status, error) = rig.json("/v1/chat/completions", chat(asked)).await;
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("response_format")));
    rig.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_called_is_refused_by_name() {
    let rig = Rig::saying("x").await;
    let function = |function: Value| json!([{ "type": "function", "function": function }]);
    let unknown = json!({ "type": "function", "function": { "name": "rm" } });
    let named = json!({ "type": "function", "function": { "name": "f" } });
    let bad = json!({ "type": "object", "properties": { "a": { "type": "text" } } });
    for (more, param) in [
        (json!({ "tool_choice": unknown }), "tool_choice"),
        (json!({ "tool_choice": "sometimes" }), "tool_choice"),
        (json!({ "tools": [{ "type": "web_search" }] }), "tools[0].type"),
        (json!({ "tools": function(json!({ "name": "a b" })) }), "tools[0].function.name"),
        (json!({ "tools": function(json!({ "name": "f", "x": 1 })) }), "tools[0].function.x"),
        (json!({ "guided_regex": "a" }), "guided_regex"),
        (json!({ "guided_regex": "a", "tool_choice": "required" }), "guided_regex"),
        (
            json!({ "response_format": as_json(&bad) }),
            "response_format.json_schema.schema.properties.a",
        ),
        (
            json!({ "tools": function(json!({ "name": "f", "parameters": bad })), "tool_choice": named }),
            "tools[0].function.parameters.properties.a",
        ),
    ] {
        let (status, error) = rig.json("/v1/chat/completions", chat(more.clone())).await;
        assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!(param)), "{more}");
    }
    let tools = json!([
        { "type": "function", "name": "f" }, { "type": "function", "name": "g", "parameters": bad },
    ]);
    let more = json!({ "tools": tools, "tool_choice": "required" });
    let (_, error) = rig.json("/v1/responses", response(more)).await;
    assert_eq!(error["error"]["param"], "tools[1].parameters.properties.a", "{error}");
    rig.node.stop().await;
    let rig = Rig::start(|config| config.tool_calls = ToolCalls::Refused).await;
    let (status, error) = rig.json("/v1/chat/completions", chat(json!({}))).await;
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("tools")));
    rig.node.stop().await;
}
