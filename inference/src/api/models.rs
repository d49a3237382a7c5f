//! `GET /v1/models`, and what the `model` of a request means.

use super::Api;
use super::auth::Caller;
use super::error::ApiError;
use crate::adapters::AdapterManifest;
use crate::link::{AdapterVersion, VersionState};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use lorikeet_contract::AdapterVersionId;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Base,
    Adapter(AdapterVersionId, Arc<AdapterManifest>),
}

/// Looks inside the caller's tenant only, so that another tenant's adapter and one that does not exist
/// are the same.
pub fn resolve(base_id: &str, caller: &Caller, model: &str) -> Result<Target, ApiError> {
    if model == base_id {
        return Ok(Target::Base);
    }
    let version = caller.current.view.version(caller.tenant, model);
    let version = version.ok_or_else(|| ApiError::NoModel(model.to_owned()))?;
    match &version.state {
        VersionState::Servable(manifest) => Ok(Target::Adapter(version.id, manifest.clone())),
        VersionState::Pending => Err(ApiError::NotReady(model.to_owned())),
        VersionState::Disabled => Err(ApiError::Disabled(model.to_owned())),
        VersionState::Rejected(reason) => {
            Err(ApiError::Unservable { model: model.to_owned(), reason: reason.clone() })
        }
    }
}

pub async fn list(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
) -> Json<Value> {
    let mut models = vec![base(&api)];
    for (name, adapter) in caller.current.view.adapters(caller.tenant) {
        let version = adapter.current();
        models.extend(version.filter(|v| is_servable(v)).map(|v| of_tenant(name, v, &caller)));
    }
    Json(json!({ "object": "list", "data": models }))
}

pub async fn get(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(model): Path<String>,
) -> Result<Json<Value>, ApiError> {
    resolve(&api.base.id, &caller, &model)?;
    let version = caller.current.view.version(caller.tenant, &model);
    Ok(Json(match version {
        Some(version) if model != api.base.id => of_tenant(&model, version, &caller),
        _ => base(&api),
    }))
}

fn is_servable(version: &AdapterVersion) -> bool {
    matches!(version.state, VersionState::Servable(_))
}

fn base(api: &Api) -> Value {
    model(&api.base.id, api.started_unix_s, "lorikeet")
}

fn of_tenant(name: &str, version: &AdapterVersion, caller: &Caller) -> Value {
    let made = version.id.as_uuid().get_timestamp().map_or(0, |t| t.to_unix().0.cast_signed());
    model(name, made, &caller.tenant.to_string())
}

fn model(id: &str, created_unix_s: i64, owner: &str) -> Value {
    json!({ "id": id, "object": "model", "created": created_unix_s, "owned_by": owner })
}
