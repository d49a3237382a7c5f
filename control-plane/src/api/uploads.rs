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
use lorikeet_reference::{Operation, named};
use serde::Deserialize;

pub(super) fn routes(registry: Registry) -> Registry {
    let manage = Access::Tenant(Scope::Manage);
    registry
        .post("/api/v1/adapters/{name}/versions", manage, start)
        .described(
            Operation::new("Begin the upload of a version")
                .body(named("NewUpload"))
                .answers(201, "Where each part goes", named("Upload"))
                .fails(403, "`insufficient_scope`, `tenant_suspended`, `quota_exceeded`"),
        )
        // The answer holds URLs that write, so looking is not enough.
        .get("/api/v1/uploads/{upload}", manage, show)
        .described(
            Operation::new("Look at an upload, with fresh URLs")
                .answers(200, "It", named("Upload"))
                .fails(409, "`upload_closed`"),
        )
        .delete("/api/v1/uploads/{upload}", manage, cancel)
        .described(
            Operation::new("Give an upload up")
                .answers_nothing(204, "It is given up")
                .fails(409, "`upload_closed`"),
        )
        .put("/api/v1/uploads/{upload}/parts", manage, report_parts)
        .described(
            Operation::new("Report parts that were sent")
                .body(named("Parts"))
                .answers_nothing(204, "They are noted")
                .fails(409, "`upload_closed`"),
        )
        .post("/api/v1/uploads/{upload}/complete", manage, complete)
        .described(
            Operation::new("Finish an upload: the version is checked next")
                .answers(202, "The version", named("Version"))
                .fails(409, "`upload_closed`, `upload_incomplete`, `parts_rejected`"),
        )
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
