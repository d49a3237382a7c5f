//! Chats in the API's description.

use super::request::{MAX_COMPLETION_TOKENS, MAX_TOKENS, TOP_LOGPROBS};
use crate::api::description::generates;
use crate::api::messages::{CHAT, MessageForm};
use crate::api::parameters::schema;
use crate::api::tools;
use lorikeet_reference::{Operation, Reference, named};
use serde_json::{Value, json};

pub fn operation() -> Operation {
    generates(
        "Answer a chat",
        "ChatRequest",
        "The answer: a `ChatCompletion`, or `ChatCompletionChunk`s and `[DONE]` where `stream` is true",
        "ChatCompletion",
    )
}

pub fn add_schemas(reference: &mut Reference) {
    let mut own = json!({
        "messages": { "type": "array", "minItems": 1, "items": named("Message") },
        "logprobs": {
            "type": ["boolean", "null"],
            "description": "Log probabilities of the answer's tokens, before penalties and biases.",
        },
    });
    for (name, property) in tools::schema::chat_properties() {
        own[name] = property;
    }
    let integers = [MAX_TOKENS, MAX_COMPLETION_TOKENS, TOP_LOGPROBS];
    reference.schema("ChatRequest", schema::request(&["model", "messages"], &integers, own));
    reference.schema(
        "Message",
        json!({ "anyOf": [
            message(CHAT),
            tools::schema::calling_message(content(CHAT)),
            tools::schema::tool_message(content(CHAT)),
        ]}),
    );
    reference.schema("ToolCall", tools::schema::call());
    reference.schema("TokenLogprob", token_logprob());
    reference.schema(
        "ChatCompletion",
        completion(
            "chat.completion",
            json!({ "message": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": { "const": "assistant" },
                    "content": { "type": ["string", "null"] },
                    "tool_calls": { "type": "array", "items": named("ToolCall") },
                    "refusal": { "type": "null" },
                },
            }}),
        ),
    );
    reference.schema(
        "ChatCompletionChunk",
        completion(
            "chat.completion.chunk",
            json!({ "delta": {
                "type": "object",
                "properties": {
                    "role": { "const": "assistant" },
                    "content": { "type": ["string", "null"] },
                    "tool_calls": { "type": "array", "items": tools::schema::call_delta() },
                },
            }}),
        ),
    );
}

/// One turn.
pub fn message(form: MessageForm) -> Value {
    json!({
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": { "enum": ["system", "developer", "user", "assistant"] },
            "content": content(form),
        },
    })
}

/// A text, or parts of it.
pub fn content(form: MessageForm) -> Value {
    json!({ "anyOf": [
        { "type": "string" },
        { "type": "array", "items": {
            "type": "object",
            "required": ["type", "text"],
            "properties": { "type": { "enum": form.text_parts }, "text": { "type": "string" } },
        }},
    ]})
}

fn token_logprob() -> Value {
    let candidate = json!({
        "token": { "type": "string" },
        "logprob": { "type": "number" },
        "bytes": { "type": "array", "items": { "type": "integer" } },
    });
    let top = json!({ "type": "object", "properties": candidate });
    let mut entry = top.clone();
    entry["properties"]["top_logprobs"] = json!({ "type": "array", "items": top });
    entry
}

fn completion(object: &str, answer: Value) -> Value {
    let mut choice = json!({
        "type": "object",
        "required": ["index", "logprobs", "finish_reason"],
        "properties": {
            "index": { "type": "integer" },
            "finish_reason": { "enum": ["stop", "length", "tool_calls", null] },
            "logprobs": {
                "type": ["object", "null"],
                "properties": { "content": { "type": "array", "items": named("TokenLogprob") } },
            },
        },
    });
    for (name, schema) in answer.as_object().into_iter().flatten() {
        choice["properties"][name] = schema.clone();
    }
    json!({
        "type": "object",
        "required": ["id", "object", "created", "model", "system_fingerprint", "choices"],
        "properties": {
            "id": { "type": "string" },
            "object": { "const": object },
            "created": { "type": "integer" },
            "model": { "type": "string", "description": "The version that answered." },
            "system_fingerprint": {
                "type": "string",
                "description": "Changes with the base model and with the adapter's content.",
            },
            "choices": { "type": "array", "items": choice },
            "usage": { "anyOf": [named("Usage"), { "type": "null" }] },
        },
    })
}
