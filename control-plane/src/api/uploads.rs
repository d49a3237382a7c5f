//! Uploads: begun, resumed, reported, completed, cancelled.

use super::adapters::{VersionView, version_view};
use super::extract::{Json, Path};
use crate::access::{Access, Registry};
use crate::auth::TenantCaller;
use crate::error::ApiError;
use crate::state::AppState;
use crate::uploads::{self, NewUpload, ReceivedPart, UploadView};
use axum::extract::State;
use axum::http::StatusCode;
use lorikeet_contract::UploadId;
use lorikeet_contract::key::Scope;
use serde::Deserialize;

pub(super) fn routes(registry: Registry) -> Registry {
    let manage = Access::Tenant(Scope::Manage);
    registry
        .post("/api/v1/adapters/{name}/versions", manage, start)
        // The answer holds URLs that write, so looking is not enough.
        .get("/api/v1/uploads/{upload}", manage, show)
        .delete("/api/v1/uploads/{upload}", manage, cancel)
        .put("/api/v1/uploads/{upload}/parts", manage, report_parts)
        .post("/api/v1/uploads/{upload}/complete", manage, complete)
}

async fn start(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
    Json(body): Json<NewUpload>,
) -> Result<(StatusCode, axum::Json<UploadView>), ApiError> {
    let acting = caller.acting();
    let view = uploads::start(&state.db.app, &state.objects, &acting, &name, body).await?;
    Ok((StatusCode::CREATED, axum::Json(view)))
}

async fn show(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(id): Path<UploadId>,
) -> Result<axum::Json<UploadView>, ApiError> {
    let view = uploads::view(&state.db.app, &state.objects, &caller.acting(), id).await?;
    Ok(axum::Json(view))
}

#[derive(Deserialize)]
struct Report {
    parts: Vec<ReceivedPart>,
}

async fn report_parts(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(id): Path<UploadId>,
    Json(body): Json<Report>,
) -> Result<StatusCode, ApiError> {
    uploads::record_parts(&state.db.app, &caller.acting(), id, &body.parts).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn complete(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(id): Path<UploadId>,
) -> Result<(StatusCode, axum::Json<VersionView>), ApiError> {
    let completed = uploads::complete(&state.db.app, &state.objects, &caller.acting(), id).await?;
    let (adapter, number) = completed;
    let version = version_view(&state, &caller, &adapter, number).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(version)))
}

async fn cancel(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(id): Path<UploadId>,
) -> Result<StatusCode, ApiError> {
    uploads::cancel(&state.db.app, &caller.acting(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}
