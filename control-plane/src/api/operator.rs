//! What operators see, across tenants. Each look leaves an audit row.

use super::extract::Query;
use super::usage::PeriodQuery;
use crate::access::{Access, Registry};
use crate::auth::OperatorCaller;
use crate::error::ApiError;
use crate::link::status::{NodesStatus, nodes};
use crate::state::AppState;
use crate::usage::queries::{OperatorUsageReport, operator_usage};
use crate::usage::reconcile::{Reconciliation, reconcile};
use crate::usage::tenants::{TenantSummary, tenants};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use time::OffsetDateTime;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/api/v1/operator/usage", Access::Operator, show_usage)
        .get("/api/v1/operator/tenants", Access::Operator, list_tenants)
        .get("/api/v1/operator/nodes", Access::Operator, list_nodes)
}

async fn show_usage(
    State(state): State<AppState>,
    caller: OperatorCaller,
    Query(query): Query<PeriodQuery>,
) -> Result<Json<OperatorUsageReport>, ApiError> {
    let period = query.period(OffsetDateTime::now_utc())?;
    let request_id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_usage", request_id).await?;
    Ok(Json(operator_usage(&mut tx, period).await?))
}

#[derive(Serialize)]
struct Tenants {
    tenants: Vec<TenantSummary>,
}

async fn list_tenants(
    State(state): State<AppState>,
    caller: OperatorCaller,
) -> Result<Json<Tenants>, ApiError> {
    let request_id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_tenants", request_id).await?;
    Ok(Json(Tenants { tenants: tenants(&mut tx, OffsetDateTime::now_utc()).await? }))
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
) -> Result<Json<Nodes>, ApiError> {
    let request_id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_nodes", request_id).await?;
    let status = nodes(&mut tx).await?;
    let reconciliation = reconcile(&mut tx, OffsetDateTime::now_utc()).await?;
    Ok(Json(Nodes { status, reconciliation }))
}
