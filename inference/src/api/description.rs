//! The API's description: what its parts have in common, and where it is served.

use super::Api;
use super::deadline;
use super::idempotency::MAX_KEY;
use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::routing::get;
use lorikeet_reference::{Operation, Reference, STYLE, named, page};
use serde_json::{Value, json};
use std::sync::Arc;

/// Of every operation that needs a key.
pub const OF_A_KEY: &[(u16, &str)] = &[
    (401, "`invalid_api_key`, `expired_api_key`, `access_revoked`"),
    (403, "`insufficient_scope`, `account_suspended`"),
    (
        429,
        "`rate_limit_exceeded`, `concurrency_limit_exceeded`, `node_busy`: try again after \
         `retry-after`",
    ),
    (500, "`internal_error`"),
    (503, "`manifest_stale`, `node_stopped`: try again, or another node"),
];

/// Of every operation that names a model.
pub const OF_A_MODEL: &[(u16, &str)] = &[
    (404, "`model_not_found`: no such model, or another customer's"),
    (409, "`adapter_not_ready`, `adapter_disabled`, `adapter_unservable`"),
];

/// Of every operation that takes a body.
pub const OF_A_BODY: &[(u16, &str)] = &[
    (400, "`param` names the field that cannot be accepted; `context_length_exceeded`"),
    (408, "The body did not arrive in time"),
    (413, "`request_too_large`"),
];

/// Of every operation that names a model and may be repeated under a key.
const OF_A_REPEAT: &[(u16, &str)] = &[
    (
        409,
        "`adapter_not_ready`, `adapter_disabled`, `adapter_unservable`, `idempotency_key_in_use`, \
         `idempotency_answer_not_kept`",
    ),
    (422, "`idempotency_key_reused`: the `Idempotency-Key` came with another body"),
];

/// Of every operation that generates.
const OF_A_GENERATION: &[(u16, &str)] = &[
    (
        503,
        "`manifest_stale`, `node_stopped`, `adapter_load_failed`, `queue_timeout`, \
         `usage_log_unavailable`",
    ),
    (
        504,
        "`deadline_exceeded`: it did not end within its `X-Request-Timeout`, or what the node gives",
    ),
];

/// An operation that generates, with all that can go wrong.
pub fn generates(summary: &'static str, body: &str, what: &str, answer: &str) -> Operation {
    let timeout = json!({ "type": "number", "minimum": deadline::SHORTEST });
    let operation = Operation::new(summary)
        .body(named(body))
        .header("X-Request-Timeout", "Seconds after which it fails, if it has not ended", timeout)
        .answers(200, what, named(answer))
        .streams(200)
        .fails_with(OF_A_KEY)
        .fails_with(OF_A_MODEL)
        .fails_with(OF_A_BODY)
        .fails_with(OF_A_GENERATION);
    repeatable(operation)
}

/// An operation on a model that runs once under a key.
pub fn repeatable(operation: Operation) -> Operation {
    let key = json!({ "type": "string", "pattern": format!("^[!-~]{{1,{MAX_KEY}}}$") });
    let what =
        "For ten minutes a repeat with the same key gets the same answer, and is not run again";
    operation.header("Idempotency-Key", what, key).fails_with(OF_A_REPEAT)
}

pub fn reference() -> Reference {
    let error = json!({
        "type": "object",
        "required": ["error"],
        "properties": { "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "request_id"],
            "properties": {
                "message": { "type": "string", "description": "What is wrong and what to do." },
                "type": { "enum": ["invalid_request_error", "rate_limit_error", "server_error"] },
                "param": { "type": ["string", "null"], "description": "The field at fault." },
                "code": { "type": ["string", "null"], "description": "For programs; stable." },
                "request_id": { "type": "string" },
            },
        }},
    });
    let about = "OpenAI's API, answered by a Lorikeet node with your own adapters. A model is the \
                 base model's name, an adapter's (`my-adapter`: its newest ready version), a fixed \
                 version (`my-adapter@3`) or an alias (`my-adapter@stable`). A field that would \
                 change the answer and is not supported is refused; one that would not is ignored \
                 and named in `x-lorikeet-ignored-fields`. A POST with an `Idempotency-Key` is run \
                 once: for ten minutes its repeat gets the same answer.";
    Reference::new("Lorikeet: inference", about, env!("CARGO_PKG_VERSION"), error)
}

pub fn usage() -> Value {
    let count = json!({ "type": "integer", "minimum": 0 });
    json!({
        "type": "object",
        "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
        "properties": {
            "prompt_tokens": count,
            "completion_tokens": count,
            "total_tokens": count,
            "prompt_tokens_details": {
                "type": "object",
                "properties": { "cached_tokens": count },
            },
        },
    })
}

/// `/openapi.json`, and the page that shows it at `/docs`.
pub fn routes(reference: &mut Reference) -> Router<Arc<Api>> {
    for (path, summary, media_type) in [
        ("/openapi.json", "This description", "application/json"),
        ("/docs", "This description as a page", "text/html"),
        ("/docs.css", "The page's style sheet", "text/css"),
    ] {
        let operation = Operation::new(summary).open();
        reference.add("get", path, &operation.answers_with(200, summary, media_type));
    }
    let document = reference.document();
    let html = page(&document, "/docs.css");
    let json = document.to_string();
    Router::new()
        .route("/openapi.json", get(async || (typed("application/json"), json)))
        .route("/docs", get(async || (typed("text/html; charset=utf-8"), html)))
        .route("/docs.css", get(async || (typed("text/css"), STYLE)))
}

/// The page needs a style sheet of this origin and nothing else.
fn typed(media_type: &'static str) -> [(HeaderName, HeaderValue); 2] {
    let policy = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'";
    [
        (header::CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)),
    ]
}
