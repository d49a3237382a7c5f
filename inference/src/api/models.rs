//! `GET /v1/models`, and what the `model` of a request means.

use super::Api;
use super::auth::Caller;
use super::description::{OF_A_KEY, OF_A_MODEL};
use super::error::ApiError;
use crate::adapters::AdapterManifest;
use crate::link::{Adapter, AdapterVersion, VersionState};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use lorikeet_contract::{AdapterVersionId, BaseModelSpec};
use lorikeet_reference::{Operation, Reference, named};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// What answers a request, settled once, when the request arrives.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    /// Says which version answers, however it was called: `name@3`, or the base model's id.
    pub name: String,
    /// Changes with everything that may change an answer: base model and adapter.
    pub fingerprint: String,
    adapter: Option<(AdapterVersionId, Arc<AdapterManifest>)>,
}

impl Model {
    pub fn version(&self) -> Option<AdapterVersionId> {
        self.adapter.as_ref().map(|(version, _)| *version)
    }

    pub fn adapter(&self) -> Option<Arc<AdapterManifest>> {
        self.adapter.as_ref().map(|(_, manifest)| manifest.clone())
    }
}

/// Looks inside the caller's tenant only, so that another tenant's adapter and one that does not exist
/// are the same.
///
/// A bare name means the newest version that this node can serve. One that this node rejects is not
/// ready, on no node; until it is, requests go on to the version before it, so that an upload never
/// breaks what was being served, and the answer says which version that was.
pub fn resolve(base: &BaseModelSpec, caller: &Caller, model: &str) -> Result<Model, ApiError> {
    let of_base = format!("fp_{}", base.weights_digest.short());
    if model == base.id {
        return Ok(Model { name: base.id.clone(), fingerprint: of_base, adapter: None });
    }
    let version = caller.current.view.version(caller.tenant, model);
    let version = version.ok_or_else(|| ApiError::NoModel(model.to_owned()))?;
    match &version.state {
        VersionState::Servable(manifest) => Ok(Model {
            name: format!("{}@{}", bare(model), version.version),
            fingerprint: format!("{of_base}_{}", manifest.key.digest.short()),
            adapter: Some((version.id, manifest.clone())),
        }),
        VersionState::Pending => Err(ApiError::NotReady(model.to_owned())),
        VersionState::Disabled => Err(ApiError::Disabled(model.to_owned())),
        VersionState::Rejected(reason) => {
            Err(ApiError::Unservable { model: model.to_owned(), reason: reason.clone() })
        }
    }
}

/// A model's name without version or alias.
fn bare(model: &str) -> &str {
    model.rsplit_once('@').map_or(model, |(name, _)| name)
}

/// One entry of the list, in OpenAI's shape with vLLM's `root` and `parent`.
#[derive(Serialize)]
struct Entry {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: String,
    /// What the name stands for now.
    root: String,
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<AdapterFacts>,
}

#[derive(Serialize)]
struct AdapterFacts {
    name: String,
    version: u32,
    version_id: AdapterVersionId,
    digest: String,
    max_rank: u32,
    /// That stand for this version.
    aliases: Vec<String>,
}

pub fn operation() -> Operation {
    Operation::new("Look at a model")
        .answers(200, "The model", named("Model"))
        .fails_with(OF_A_KEY)
        .fails_with(OF_A_MODEL)
}

pub fn list_operation() -> Operation {
    let list = json!({
        "type": "object",
        "properties": {
            "object": { "const": "list" },
            "data": { "type": "array", "items": named("Model") },
        },
    });
    let what =
        "The base model, and your adapters by name and by alias, as far as they can be asked";
    Operation::new("List models").answers(200, what, list).fails_with(OF_A_KEY)
}

pub fn add_schemas(reference: &mut Reference) {
    let text = json!({ "type": "string" });
    let adapter = json!({
        "type": "object",
        "properties": {
            "name": text,
            "version": { "type": "integer" },
            "version_id": text,
            "digest": text,
            "max_rank": { "type": "integer" },
            "aliases": { "type": "array", "items": text },
        },
    });
    let model = json!({
        "type": "object",
        "required": ["id", "object", "created", "owned_by", "root", "parent"],
        "properties": {
            "id": text,
            "object": { "const": "model" },
            "created": { "type": "integer" },
            "owned_by": text,
            "root": { "type": "string", "description": "What the name stands for now." },
            "parent": { "type": ["string", "null"], "description": "An adapter's base model." },
            "max_model_len": { "type": "integer" },
            "adapter": adapter,
        },
    });
    reference.schema("Model", model);
}

/// The base model, and each of the caller's adapters by its bare name and by its aliases, as far as
/// they can be asked now.
pub async fn list(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
) -> Json<Value> {
    let mut models = vec![of_base(&api)];
    for (name, adapter) in caller.current.view.adapters(caller.tenant) {
        let bare = adapter.current().map(|version| (name.to_owned(), version));
        let aliases = adapter.aliases.keys().filter_map(|alias| {
            adapter.select(alias).map(|version| (format!("{name}@{alias}"), version))
        });
        let ids = bare.into_iter().chain(aliases);
        models.extend(ids.filter_map(|(id, version)| {
            of_adapter(&api.base, &caller, id, name, adapter, version)
        }));
    }
    Json(json!({ "object": "list", "data": models }))
}

pub async fn get(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(model): Path<String>,
) -> Result<Json<Value>, ApiError> {
    resolve(&api.base, &caller, &model)?;
    let name = bare(&model);
    let adapter = caller.current.view.adapter(caller.tenant, name);
    let version = caller.current.view.version(caller.tenant, &model);
    let found = adapter.zip(version).filter(|_| model != api.base.id);
    let entry = found.and_then(|(adapter, version)| {
        of_adapter(&api.base, &caller, model.clone(), name, adapter, version)
    });
    Ok(Json(json!(entry.unwrap_or_else(|| of_base(&api)))))
}

fn of_base(api: &Api) -> Entry {
    Entry {
        id: api.base.id.clone(),
        object: "model",
        created: api.started_unix_s,
        owned_by: "lorikeet".into(),
        root: api.base.id.clone(),
        parent: None,
        max_model_len: Some(api.base.context_length),
        adapter: None,
    }
}

/// None when the version cannot be served.
fn of_adapter(
    base: &BaseModelSpec,
    caller: &Caller,
    id: String,
    name: &str,
    adapter: &Adapter,
    version: &AdapterVersion,
) -> Option<Entry> {
    let VersionState::Servable(manifest) = &version.state else { return None };
    let aliases = adapter.aliases.iter().filter(|(_, id)| **id == version.id);
    Some(Entry {
        id,
        object: "model",
        created: version.id.as_uuid().get_timestamp().map_or(0, |t| t.to_unix().0.cast_signed()),
        owned_by: caller.tenant.to_string(),
        root: format!("{name}@{}", version.version),
        parent: Some(base.id.clone()),
        max_model_len: Some(base.context_length),
        adapter: Some(AdapterFacts {
            name: name.to_owned(),
            version: version.version,
            version_id: version.id,
            digest: manifest.key.digest.to_string(),
            max_rank: manifest.max_rank,
            aliases: aliases.map(|(alias, _)| alias.clone()).collect(),
        }),
    })
}
