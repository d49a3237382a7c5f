//! Responses in the API's description.

use super::request::{LOGPROBS, MAX_OUTPUT_TOKENS, TOP_LOGPROBS};
use crate::api::chat::schema::{content, message};
use crate::api::description::generates;
use crate::api::messages::RESPONSES;
use crate::api::parameters::{grammar, schema};
use crate::api::tools;
use lorikeet_reference::{Operation, Reference, named};
use serde_json::json;

pub fn operation() -> Operation {
    generates(
        "Make a response",
        "ResponseRequest",
        "A `Response`, or the events of its making where `stream` is true",
        "Response",
    )
}

pub fn add_schemas(reference: &mut Reference) {
    let mut own = json!({
        "input": {
            "anyOf": [
                { "type": "string" },
                { "type": "array", "minItems": 1, "items": named("InputItem") },
            ],
            "description": "The whole chat so far: nothing is stored.",
        },
        "n": { "const": 1, "description": "A response has one answer." },
        "text": grammar::text_property(),
        "instructions": { "type": ["string", "null"], "description": "Comes first, as the system." },
        "include": {
            "type": ["array", "null"], "items": { "const": LOGPROBS }, "maxItems": 1,
        },
    });
    for (name, property) in tools::schema::response_properties() {
        own[name] = property;
    }
    let integers = [MAX_OUTPUT_TOKENS, TOP_LOGPROBS];
    reference.schema("ResponseRequest", schema::request(&["model", "input"], &integers, own));
    reference.schema(
        "InputItem",
        json!({ "anyOf": [
            message(RESPONSES),
            named("FunctionCall"),
            {
                "type": "object",
                "required": ["type", "call_id", "output"],
                "properties": {
                    "type": { "const": "function_call_output" },
                    "call_id": { "type": "string" },
                    "output": content(RESPONSES),
                },
            },
        ]}),
    );
    reference.schema(
        "FunctionCall",
        json!({
            "type": "object",
            "required": ["type", "call_id", "name", "arguments"],
            "properties": {
                "type": { "const": "function_call" },
                "id": { "type": "string" },
                "call_id": { "type": "string" },
                "name": { "type": "string" },
                "arguments": { "type": "string", "description": "A JSON object, as text." },
                "status": { "enum": ["in_progress", "completed", "incomplete"] },
            },
        }),
    );
    let part = json!({
        "type": "object",
        "properties": {
            "type": { "const": "output_text" },
            "text": { "type": "string" },
            "annotations": { "type": "array" },
            "logprobs": { "type": "array", "items": named("TokenLogprob") },
        },
    });
    let item = json!({
        "type": "object",
        "properties": {
            "id": { "type": "string" },
            "type": { "const": "message" },
            "role": { "const": "assistant" },
            "status": { "enum": ["in_progress", "completed", "incomplete"] },
            "content": { "type": "array", "items": part },
        },
    });
    let response = json!({
        "type": "object",
        "required": ["id", "object", "created_at", "status", "model", "output", "usage"],
        "properties": {
            "id": { "type": "string" },
            "object": { "const": "response" },
            "created_at": { "type": "integer" },
            "status": { "enum": ["in_progress", "completed", "incomplete", "failed"] },
            "incomplete_details": {
                "type": ["object", "null"],
                "properties": { "reason": { "const": "max_output_tokens" } },
            },
            "error": { "type": ["object", "null"] },
            "model": { "type": "string", "description": "The version that answered." },
            "system_fingerprint": { "type": "string" },
            "output": {
                "type": "array", "items": { "anyOf": [item, named("FunctionCall")] },
            },
            "metadata": { "type": "object" },
            "usage": { "type": ["object", "null"] },
        },
    });
    reference.schema("Response", response);
}
