//! `/adapters/{name}/aliases`: set and taken away; they are listed with their adapter.

use super::extract::{Json, Path};
use crate::access::{Access, Registry};
use crate::adapters::alias::{self, Alias};
use crate::auth::TenantCaller;
use crate::error::ApiError;
use crate::state::AppState;
use axum::extract::State;
use axum::http::StatusCode;
use lorikeet_contract::key::Scope;
use lorikeet_reference::{Operation, named};
use serde::Deserialize;

pub(super) fn routes(registry: Registry) -> Registry {
    let manage = Access::Tenant(Scope::Manage);
    registry
        .put("/api/v1/adapters/{name}/aliases/{alias}", manage, set)
        .described(
            Operation::new("Point an alias at a version: `name@alias` calls it")
                .body(named("NewAlias"))
                .answers(200, "The alias", named("Alias"))
                .fails(409, "`version_not_ready`"),
        )
        .delete("/api/v1/adapters/{name}/aliases/{alias}", manage, unset)
        .described(Operation::new("Take an alias away").answers_nothing(204, "It is gone"))
}

#[derive(Deserialize)]
struct NewAlias {
    /// The number of a version that is ready.
    version: i32,
}

async fn set(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path((name, alias)): Path<(String, String)>,
    Json(body): Json<NewAlias>,
) -> Result<axum::Json<Alias>, ApiError> {
    let acting = caller.acting();
    alias::set(&state.db.app, &acting, &name, &alias, body.version).await.map(axum::Json)
}

async fn unset(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path((name, alias)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    alias::unset(&state.db.app, &caller.acting(), &name, &alias).await?;
    Ok(StatusCode::NO_CONTENT)
}
