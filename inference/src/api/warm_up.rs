//! `POST /v1/adapters/{model}/warm-up`: loads an adapter ahead of its requests.

use super::Api;
use super::auth::Caller;
use super::description::{OF_A_BODY, OF_A_KEY, OF_A_MODEL, repeatable};
use super::error::ApiError;
use super::models::resolve;
use crate::engine::WarmUpError;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use lorikeet_reference::Operation;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long the call waits for the load, in seconds, unless it says; and at most.
const WAIT: u64 = 30;
const MAX_WAIT: u64 = 120;

#[derive(Deserialize)]
pub struct Wait {
    wait: Option<u64>,
}

pub fn operation() -> Operation {
    let state = |status: &str| {
        json!({
            "type": "object",
            "required": ["model", "status"],
            "properties": {
                "model": { "type": "string", "description": "Says which version." },
                "status": { "const": status },
                "load_ms": { "type": "integer", "minimum": 0 },
            },
        })
    };
    let wait = json!({ "type": "integer", "minimum": 0, "maximum": MAX_WAIT, "default": WAIT });
    let operation = Operation::new("Load an adapter ahead of its requests")
        .query("wait", "How long to wait for the load, in seconds", wait)
        .answers(200, "It is on the device", state("loaded"))
        .answers(202, "The load goes on", state("loading"))
        .fails_with(OF_A_KEY)
        .fails_with(OF_A_MODEL)
        .fails_with(OF_A_BODY)
        .fails(400, "`wait` is out of its range")
        .fails(503, "`adapter_load_failed`, `manifest_stale`, `node_stopped`");
    repeatable(operation)
}

/// 200 when the adapter is on the device, 202 when it is still under way after the wait.
pub async fn warm_up(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(model): Path<String>,
    wait: Result<Query<Wait>, QueryRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let wait = wait.ok().and_then(|Query(Wait { wait })| match wait.unwrap_or(WAIT) {
        seconds @ 0..=MAX_WAIT => Some(Duration::from_secs(seconds)),
        _ => None,
    });
    let wait = wait.ok_or_else(|| {
        ApiError::invalid("wait", format!("`wait` must be from 0 to {MAX_WAIT} seconds."))
    })?;
    let resolved = resolve(&api.base, &caller, &model)?;
    let took = match resolved.adapter() {
        // The base model is always there.
        None => Some(Duration::ZERO),
        Some(adapter) => {
            let (engine, share) = (api.engine.clone(), caller.limits().share());
            // A task of its own, so that the load goes on when the wait or the connection ends.
            let loading = tokio::spawn(async move { engine.warm_up(adapter, share).await });
            match tokio::time::timeout(wait, loading).await {
                Ok(Ok(loaded)) => Some(loaded?),
                Ok(Err(_)) => return Err(ApiError::Internal),
                Err(_) => None,
            }
        }
    };
    Ok(match took {
        Some(took) => {
            let load_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            let body = json!({ "model": resolved.name, "status": "loaded", "load_ms": load_ms });
            (StatusCode::OK, Json(body))
        }
        None => {
            let body = json!({ "model": resolved.name, "status": "loading" });
            (StatusCode::ACCEPTED, Json(body))
        }
    })
}

impl From<WarmUpError> for ApiError {
    fn from(error: WarmUpError) -> Self {
        match error {
            WarmUpError::QueueFull => Self::Busy,
            WarmUpError::AdapterLoad(reason) => Self::AdapterLoad(reason),
            WarmUpError::Stopped => Self::Stopped,
        }
    }
}
