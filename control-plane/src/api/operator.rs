//! What operators see across tenants, the limits they set, and what they pin. Each look and each change
//! leaves an audit row.

use super::description::anything;
use super::extract::{Json, Path, Query};
use super::usage::{PeriodQuery, in_period};
use crate::access::{Access, Registry};
use crate::adapters;
use crate::auth::OperatorCaller;
use crate::error::ApiError;
use crate::link::status::{NodesStatus, nodes};
use crate::state::AppState;
use crate::tenants::{self, TenantLimits};
use crate::usage::queries::{OperatorUsageReport, operator_usage};
use crate::usage::reconcile::{Reconciliation, reconcile};
use crate::usage::tenants::{TenantSummary, tenants as list_all};
use axum::extract::State;
use axum::http::StatusCode;
use lorikeet_contract::TenantId;
use lorikeet_reference::{Operation, named};
use serde::Serialize;
use time::OffsetDateTime;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/api/v1/operator/usage", Access::Operator, show_usage)
        .described(in_period("All tenants' usage").answers(200, "By tenant", anything()))
        .get("/api/v1/operator/tenants", Access::Operator, list_tenants)
        .described(Operation::new("All tenants").answers(200, "Tenants", anything()))
        .get("/api/v1/operator/nodes", Access::Operator, list_nodes)
        .described(Operation::new("All nodes, and whether the books agree").answers(
            200,
            "Nodes",
            anything(),
        ))
        .put("/api/v1/operator/tenants/{tenant}/limits", Access::Operator, set_limits)
        .described(
            Operation::new("Replace a tenant's limits; one that is left out ends")
                .body(named("Limits"))
                .answers(200, "The limits", named("Limits")),
        )
        .put("/api/v1/operator/tenants/{tenant}/adapters/{name}/pin", Access::Operator, pin)
        .described(
            Operation::new("Keep an adapter on the nodes' devices")
                .answers_nothing(204, "It is pinned"),
        )
        .delete("/api/v1/operator/tenants/{tenant}/adapters/{name}/pin", Access::Operator, unpin)
        .described(
            Operation::new("Let an adapter give way again")
                .answers_nothing(204, "It is not pinned"),
        )
}

async fn show_usage(
    State(state): State<AppState>,
    caller: OperatorCaller,
    Query(query): Query<PeriodQuery>,
) -> Result<axum::Json<OperatorUsageReport>, ApiError> {
    let period = query.period(OffsetDateTime::now_utc())?;
    let request_id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_usage", request_id).await?;
    Ok(axum::Json(operator_usage(&mut tx, period).await?))
}

#[derive(Serialize)]
struct Tenants {
    tenants: Vec<TenantSummary>,
}

async fn list_tenants(
    State(state): State<AppState>,
    caller: OperatorCaller,
) -> Result<axum::Json<Tenants>, ApiError> {
    let request_id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_tenants", request_id).await?;
    Ok(axum::Json(Tenants { tenants: list_all(&mut tx, OffsetDateTime::now_utc()).await? }))
}

#[derive(Serialize)]
struct Nodes {
    #[serde(flatten)]
    status: NodesStatus,
    reconciliation: Reconciliation,
}

async fn list_nodes(
    State(state): State<AppState>,
    caller: OperatorCaller,
) -> Result<axum::Json<Nodes>, ApiError> {
    let request_id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_nodes", request_id).await?;
    let status = nodes(&mut tx).await?;
    let reconciliation = reconcile(&mut tx, OffsetDateTime::now_utc()).await?;
    Ok(axum::Json(Nodes { status, reconciliation }))
}

/// Replaces all of the tenant's limits; one that is left out ends.
async fn set_limits(
    State(state): State<AppState>,
    caller: OperatorCaller,
    Path(tenant): Path<TenantId>,
    Json(limits): Json<TenantLimits>,
) -> Result<axum::Json<TenantLimits>, ApiError> {
    tenants::set_limits(&state.db, &caller, tenant, limits).await?;
    Ok(axum::Json(limits))
}

/// Has the nodes keep the adapter in memory while it fits.
async fn pin(
    State(state): State<AppState>,
    caller: OperatorCaller,
    Path((tenant, name)): Path<(TenantId, String)>,
) -> Result<StatusCode, ApiError> {
    adapters::set_pinned(&state.db, &caller, tenant, &name, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unpin(
    State(state): State<AppState>,
    caller: OperatorCaller,
    Path((tenant, name)): Path<(TenantId, String)>,
) -> Result<StatusCode, ApiError> {
    adapters::set_pinned(&state.db, &caller, tenant, &name, false).await?;
    Ok(StatusCode::NO_CONTENT)
}
