//! Completions in the API's description.

use super::request::{LOGPROBS, MAX_TOKENS};
use crate::api::description::generates;
use crate::api::parameters::{MAX_CHOICES, schema};
use lorikeet_reference::{Operation, Reference, named};
use serde_json::json;

pub fn operation() -> Operation {
    generates(
        "Go on from a prompt",
        "CompletionRequest",
        "The answer: a `Completion`, or several of them and `[DONE]` where `stream` is true",
        "Completion",
    )
}

pub fn add_schemas(reference: &mut Reference) {
    let text = json!({ "type": "string", "minLength": 1 });
    let tokens = json!({
        "type": "array", "minItems": 1,
        "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX },
    });
    let own = json!({
        "prompt": {
            "anyOf": [
                text,
                { "type": "array", "items": text, "minItems": 1, "maxItems": MAX_CHOICES },
                tokens,
                { "type": "array", "items": tokens, "minItems": 1, "maxItems": MAX_CHOICES },
            ],
            "description": "A text, in which special tokens are recognised, token ids, or a list of \
                            either; each is answered.",
        },
        "echo": {
            "type": ["boolean", "null"],
            "description": "The answer begins with the prompt. With `logprobs` its tokens have log \
                            probabilities, too; the first has none.",
        },
    });
    let integers = [MAX_TOKENS, LOGPROBS];
    reference.schema("CompletionRequest", schema::request(&["model", "prompt"], &integers, own));
    let column = |kind: &str| json!({ "type": "array", "items": { "type": kind } });
    let nullable = |kind: &str| json!({ "type": "array", "items": { "type": [kind, "null"] } });
    let logprobs = json!({
        "type": ["object", "null"],
        "properties": {
            "tokens": column("string"),
            "token_logprobs": nullable("number"),
            "top_logprobs": nullable("object"),
            "text_offset": column("integer"),
        },
    });
    let choice = json!({
        "type": "object",
        "required": ["index", "text", "logprobs", "finish_reason"],
        "properties": {
            "index": { "type": "integer" },
            "text": { "type": "string" },
            "logprobs": logprobs,
            "finish_reason": { "enum": ["stop", "length", null] },
        },
    });
    let completion = json!({
        "type": "object",
        "required": ["id", "object", "created", "model", "system_fingerprint", "choices"],
        "properties": {
            "id": { "type": "string" },
            "object": { "const": "text_completion" },
            "created": { "type": "integer" },
            "model": { "type": "string", "description": "The version that answered." },
            "system_fingerprint": { "type": "string" },
            "choices": { "type": "array", "items": choice },
            "usage": { "anyOf": [named("Usage"), { "type": "null" }] },
        },
    });
    reference.schema("Completion", completion);
}
