//! `GET /health`: the process answers. `GET /ready`: it can take requests.

use super::Api;
use crate::engine::EngineState;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use lorikeet_reference::Operation;
use serde_json::{Value, json};
use std::sync::Arc;

pub fn health_operation() -> Operation {
    let answer = json!({ "type": "object", "properties": { "status": { "const": "ok" } } });
    Operation::new("Whether the process answers").open().answers(200, "It does", answer)
}

pub fn ready_operation() -> Operation {
    let answer = json!({
        "type": "object",
        "required": ["ready"],
        "properties": {
            "ready": { "type": "boolean" },
            "reason": { "type": "string" },
            "progress": {
                "type": "number",
                "description": "The part of the model that has been loaded, while it is.",
            },
        },
    });
    Operation::new("Whether the node takes requests")
        .open()
        .answers(200, "It does", answer.clone())
        .answers(503, "It does not, and why", answer)
}

pub async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

pub async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    match obstacle(&api) {
        None => (StatusCode::OK, Json(json!({ "ready": true }))),
        Some(reason) => {
            let body = json!({ "ready": false, "reason": reason });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body))
        }
    }
}

fn obstacle(api: &Api) -> Option<&'static str> {
    if api.stopping.is_cancelled() {
        return Some("the node is draining");
    }
    match api.engine.stats().state {
        EngineState::Running => {}
        EngineState::Starting => return Some("the engine is starting"),
        EngineState::Draining | EngineState::Drained => return Some("the node is draining"),
        EngineState::Stopped(_) => return Some("the engine has stopped"),
    }
    if !api.manifest.current().applied {
        return Some("no manifest has come from the control plane yet");
    }
    if !api.usage.is_writable() {
        return Some("the usage log is not writable");
    }
    None
}
