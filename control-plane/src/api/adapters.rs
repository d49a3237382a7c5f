//! Adapters and their versions: listed, looked at, switched off and on, deleted.

use super::description::list_of;
use super::extract::Path;
use crate::access::{Access, Registry};
use crate::adapters::alias::Alias;
use crate::adapters::{self, AdapterSummary, Version, VersionState};
use crate::auth::TenantCaller;
use crate::error::ApiError;
use crate::state::AppState;
use axum::extract::State;
use axum::http::StatusCode;
use lorikeet_contract::key::Scope;
use lorikeet_contract::{AdapterId, AdapterVersionId};
use lorikeet_reference::{Operation, named};
use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/api/v1/adapters", Access::Tenant(Scope::Read), list)
        .described(Operation::new("List adapters").answers(
            200,
            "By name",
            list_of("adapters", "Adapter"),
        ))
        .get("/api/v1/adapters/{name}", Access::Tenant(Scope::Read), show)
        .described(Operation::new("Look at an adapter and its versions").answers(
            200,
            "The adapter",
            named("Adapter"),
        ))
        .delete("/api/v1/adapters/{name}", Access::Tenant(Scope::Manage), delete)
        .described(
            Operation::new("Delete an adapter")
                .answers_nothing(204, "All its versions stop answering"),
        )
        .post("/api/v1/adapters/{name}/disable", Access::Tenant(Scope::Manage), disable)
        .described(
            Operation::new("Switch an adapter off: it is refused under all its names, and kept")
                .answers_nothing(204, "New requests are refused with 409 `adapter_disabled`"),
        )
        .post("/api/v1/adapters/{name}/enable", Access::Tenant(Scope::Manage), enable)
        .described(
            Operation::new("Switch an adapter on again")
                .answers_nothing(204, "It answers as before"),
        )
        .get("/api/v1/adapters/{name}/versions/{version}", Access::Tenant(Scope::Read), version)
        .described(Operation::new("Look at a version").answers(
            200,
            "The version",
            named("Version"),
        ))
}

#[derive(Serialize)]
struct AdapterView {
    id: AdapterId,
    name: String,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    /// No version answers until it is enabled again.
    disabled: bool,
    /// The newest version that answers.
    serving_version: Option<i32>,
    aliases: Vec<Alias>,
    latest_version: Option<VersionView>,
}

/// A version as clients see it.
#[derive(Serialize)]
pub(super) struct VersionView {
    version_id: AdapterVersionId,
    version: i32,
    state: VersionState,
    error: Option<VersionError>,
    /// What has to happen outside before the state can change, in words.
    waiting_for: Option<&'static str>,
    digest: Option<String>,
    rank: Option<i32>,
    targets: Vec<String>,
    parameters: Option<i64>,
    /// Of the uploaded files.
    bytes: i64,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    verified_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    ready_at: Option<OffsetDateTime>,
}

#[derive(Serialize)]
struct VersionError {
    code: String,
    message: String,
}

impl VersionView {
    fn new(version: Version, waiting_for: Option<&'static str>) -> Self {
        Self {
            version_id: version.id(),
            version: version.version,
            state: version.state,
            error: version.error.map(|message| VersionError {
                code: version.error_code.unwrap_or_default(),
                message,
            }),
            waiting_for,
            digest: version.digest.map(hex::encode),
            rank: version.rank,
            targets: version.targets,
            parameters: version.parameters,
            bytes: version.source_bytes,
            created_at: version.created_at,
            verified_at: version.verified_at,
            ready_at: version.ready_at,
        }
    }
}

impl AdapterView {
    fn new(adapter: AdapterSummary, no_node: bool) -> Self {
        Self {
            id: AdapterId::from_uuid(adapter.id),
            name: adapter.name,
            created_at: adapter.created_at,
            disabled: adapter.disabled,
            serving_version: adapter.serving_version,
            aliases: adapter.aliases,
            latest_version: adapter.latest.map(|version| {
                let waiting_for = adapters::waiting_for(version.state, no_node);
                VersionView::new(version, waiting_for)
            }),
        }
    }
}

#[derive(Serialize)]
struct Adapters {
    adapters: Vec<AdapterView>,
}

async fn list(
    State(state): State<AppState>,
    caller: TenantCaller,
) -> Result<axum::Json<Adapters>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let no_node = adapters::base_model(&mut tx).await?.is_none();
    let adapters = adapters::list(&mut tx).await?;
    let adapters = adapters.into_iter().map(|a| AdapterView::new(a, no_node)).collect();
    Ok(axum::Json(Adapters { adapters }))
}

#[derive(Serialize)]
struct AdapterWithVersions {
    #[serde(flatten)]
    adapter: AdapterView,
    /// Newest first.
    versions: Vec<VersionView>,
}

async fn show(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<axum::Json<AdapterWithVersions>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let no_node = adapters::base_model(&mut tx).await?.is_none();
    let adapter = adapters::find(&mut tx, &name).await?.ok_or(ApiError::NotFound)?;
    let versions = adapters::versions(&mut tx, adapter.id).await?;
    let view = |v: Version| {
        let waiting_for = adapters::waiting_for(v.state, no_node);
        VersionView::new(v, waiting_for)
    };
    Ok(axum::Json(AdapterWithVersions {
        adapter: AdapterView::new(adapter, no_node),
        versions: versions.into_iter().map(view).collect(),
    }))
}

async fn version(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path((name, number)): Path<(String, i32)>,
) -> Result<axum::Json<VersionView>, ApiError> {
    version_view(&state, &caller, &name, number).await.map(axum::Json)
}

pub(super) async fn version_view(
    state: &AppState,
    caller: &TenantCaller,
    name: &str,
    number: i32,
) -> Result<VersionView, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let version = adapters::version(&mut tx, name, number).await?.ok_or(ApiError::NotFound)?;
    let no_node = adapters::base_model(&mut tx).await?.is_none();
    let waiting_for = adapters::waiting_for(version.state, no_node);
    Ok(VersionView::new(version, waiting_for))
}

async fn delete(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    adapters::delete(&state.db.app, &caller.acting(), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Nodes refuse it from the next revision on; requests that run end as they would have.
async fn disable(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    adapters::set_disabled(&state.db.app, &caller.acting(), &name, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn enable(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    adapters::set_disabled(&state.db.app, &caller.acting(), &name, false).await?;
    Ok(StatusCode::NO_CONTENT)
}
