//! Tools in the API's description.

use super::form::MAX_TOOLS;
use lorikeet_reference::named;
use serde_json::{Value, json};

fn function() -> Value {
    json!({
        "name": { "type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$" },
        "description": { "type": ["string", "null"] },
        "parameters": {
            "type": ["object", "null"],
            "description": "A JSON schema of the arguments. Without it there are none.",
        },
        "strict": { "type": ["boolean", "null"] },
    })
}

fn properties(tool: Value, named_choice: Value) -> [(&'static str, Value); 3] {
    [
        ("tools", json!({ "type": ["array", "null"], "items": tool, "maxItems": MAX_TOOLS })),
        (
            "tool_choice",
            json!({
                "anyOf": [
                    { "enum": ["none", "auto", "required"] }, named_choice, { "type": "null" },
                ],
                "description": "Whether the answer may be, or must be, calls of tools.",
            }),
        ),
        (
            "parallel_tool_calls",
            json!({
                "type": ["boolean", "null"],
                "description": "Whether an answer that must call may have several calls.",
            }),
        ),
    ]
}

pub fn chat_properties() -> [(&'static str, Value); 3] {
    let kind = json!({ "const": "function" });
    let function = json!({
        "type": "object", "required": ["name"], "properties": function(), "additionalProperties": false,
    });
    let tool = json!({
        "type": "object",
        "required": ["type", "function"],
        "properties": { "type": kind, "function": function },
        "additionalProperties": false,
    });
    let choice = json!({
        "type": "object",
        "required": ["type", "function"],
        "properties": { "type": kind, "function": {
            "type": "object", "required": ["name"], "properties": { "name": { "type": "string" } },
        }},
    });
    properties(tool, choice)
}

pub fn response_properties() -> [(&'static str, Value); 3] {
    let mut fields = function();
    fields["type"] = json!({ "const": "function" });
    let tool = json!({
        "type": "object",
        "required": ["type", "name"],
        "properties": fields,
        "additionalProperties": false,
    });
    let choice = json!({
        "type": "object",
        "required": ["type", "name"],
        "properties": { "type": { "const": "function" }, "name": { "type": "string" } },
    });
    properties(tool, choice)
}

/// A call in a chat.
pub fn call() -> Value {
    json!({
        "type": "object",
        "required": ["id", "type", "function"],
        "properties": {
            "id": { "type": "string" },
            "type": { "const": "function" },
            "function": {
                "type": "object",
                "required": ["name", "arguments"],
                "properties": {
                    "name": { "type": "string" },
                    "arguments": { "type": "string", "description": "A JSON object, as text." },
                },
            },
        },
    })
}

/// Of a stream: id and name come once, the arguments in pieces.
pub fn call_delta() -> Value {
    let mut delta = call();
    delta["required"] = json!(["index", "function"]);
    delta["properties"]["index"] = json!({ "type": "integer" });
    delta["properties"]["function"]["required"] = json!(["arguments"]);
    delta
}

/// What the assistant has called before.
pub fn calling_message(content: Value) -> Value {
    json!({
        "type": "object",
        "required": ["role", "tool_calls"],
        "properties": {
            "role": { "const": "assistant" },
            "content": { "anyOf": [content, { "type": "null" }] },
            "tool_calls": { "type": "array", "items": named("ToolCall"), "minItems": 1 },
        },
    })
}

/// What came of a call.
pub fn tool_message(content: Value) -> Value {
    json!({
        "type": "object",
        "required": ["role", "tool_call_id", "content"],
        "properties": {
            "role": { "const": "tool" },
            "tool_call_id": { "type": "string" },
            "content": content,
        },
    })
}
