//! Tenants as operators see them, the form of their limits, and their adapters to be pinned.

use super::account::told;
use super::{Page, format, render};
use crate::access::{Access, Registry};
use crate::adapters::{self, PinnableAdapter};
use crate::api::extract::{Form, Path};
use crate::auth::{OperatorCaller, Session};
use crate::error::ApiError;
use crate::state::AppState;
use crate::tenants::{self, TenantLimits};
use crate::usage::tenants::{TenantSummary, tenants as list_all};
use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use lorikeet_contract::TenantId;
use serde::Deserialize;
use time::OffsetDateTime;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/operator/tenants", Access::Operator, list)
        .get("/operator/tenants/{tenant}", Access::Operator, edit)
        .post("/operator/tenants/{tenant}/limits", Access::Operator, set_limits)
}

#[derive(Template)]
#[template(path = "operator_tenants.html")]
struct TenantsPage {
    page: Page,
    tenants: Vec<TenantRow>,
}

struct TenantRow {
    id: TenantId,
    name: String,
    suspended: bool,
    adapters: String,
    requests: String,
    tokens: String,
    limits: Vec<LimitRow>,
}

impl TenantRow {
    fn new(tenant: TenantSummary) -> Self {
        let used = tenant.this_month;
        Self {
            id: tenant.id,
            name: tenant.name,
            suspended: tenant.suspended,
            adapters: format::count(tenant.adapters),
            requests: format::count(used.requests),
            tokens: format::count(used.prompt_tokens + used.completion_tokens),
            limits: limit_rows(tenant.limits),
        }
    }
}

/// One limit in words.
pub(super) struct LimitRow {
    pub name: &'static str,
    pub value: String,
}

/// The limits that are set.
pub(super) fn limit_rows(limits: TenantLimits) -> Vec<LimitRow> {
    let rows = [
        ("requests at once on a node", limits.max_concurrency.map(format::count)),
        ("requests per minute", limits.requests_per_minute.map(format::count)),
        ("tokens per minute", limits.tokens_per_minute.map(format::count)),
        ("weight", limits.weight.map(format::count)),
        ("of adapters in host memory", limits.adapter_host_bytes.map(format::bytes)),
        ("of adapters on the device", limits.adapter_device_bytes.map(format::bytes)),
    ];
    rows.into_iter().filter_map(|(name, value)| Some(LimitRow { name, value: value? })).collect()
}

async fn list(
    State(state): State<AppState>,
    session: Session,
    caller: OperatorCaller,
) -> Result<Html<String>, ApiError> {
    let id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_tenants", id).await?;
    let tenants = list_all(&mut tx, OffsetDateTime::now_utc()).await?;
    drop(tx);
    let page = Page::new(&session, "operator-tenants");
    render(&TenantsPage { page, tenants: tenants.into_iter().map(TenantRow::new).collect() })
}

#[derive(Template)]
#[template(path = "operator_tenant.html")]
struct TenantPage {
    page: Page,
    id: TenantId,
    name: String,
    fields: Vec<LimitField>,
    adapters: Vec<PinnableAdapter>,
    error: Option<String>,
}

struct LimitField {
    name: &'static str,
    label: &'static str,
    hint: &'static str,
    value: String,
}

/// As it comes from the form and goes back to it: empty is none.
#[derive(Default, Deserialize)]
#[serde(default)]
struct LimitsForm {
    max_concurrency: String,
    requests_per_minute: String,
    tokens_per_minute: String,
    weight: String,
    adapter_host_bytes: String,
    adapter_device_bytes: String,
}

impl LimitsForm {
    fn filled(limits: TenantLimits) -> Self {
        let text = |value: Option<i64>| value.map(|v| v.to_string()).unwrap_or_default();
        Self {
            max_concurrency: text(limits.max_concurrency),
            requests_per_minute: text(limits.requests_per_minute),
            tokens_per_minute: text(limits.tokens_per_minute),
            weight: text(limits.weight),
            adapter_host_bytes: text(limits.adapter_host_bytes),
            adapter_device_bytes: text(limits.adapter_device_bytes),
        }
    }

    fn read(&self) -> Result<TenantLimits, ApiError> {
        let number = |param: &'static str, text: &str| match text.trim() {
            "" => Ok(None),
            digits => digits
                .parse()
                .map(Some)
                .map_err(|_| ApiError::invalid(param, format!("{param} must be a whole number"))),
        };
        Ok(TenantLimits {
            max_concurrency: number("max_concurrency", &self.max_concurrency)?,
            requests_per_minute: number("requests_per_minute", &self.requests_per_minute)?,
            tokens_per_minute: number("tokens_per_minute", &self.tokens_per_minute)?,
            weight: number("weight", &self.weight)?,
            adapter_host_bytes: number("adapter_host_bytes", &self.adapter_host_bytes)?,
            adapter_device_bytes: number("adapter_device_bytes", &self.adapter_device_bytes)?,
        })
    }

    fn fields(self) -> Vec<LimitField> {
        let field = |name, label, hint, value| LimitField { name, label, hint, value };
        vec![
            field("max_concurrency", "Requests at once", "On each node.", self.max_concurrency),
            field(
                "requests_per_minute",
                "Requests per minute",
                "Over all nodes, which share it evenly.",
                self.requests_per_minute,
            ),
            field(
                "tokens_per_minute",
                "Tokens per minute",
                "Prompt and completion, over all nodes.",
                self.tokens_per_minute,
            ),
            field(
                "weight",
                "Weight",
                "Against the other tenants' where they compete; 100 unless set.",
                self.weight,
            ),
            field(
                "adapter_host_bytes",
                "Adapter bytes in host memory",
                "Of this tenant's adapters, on each node.",
                self.adapter_host_bytes,
            ),
            field(
                "adapter_device_bytes",
                "Adapter bytes on the device",
                "Of this tenant's adapters, on each node.",
                self.adapter_device_bytes,
            ),
        ]
    }
}

async fn page(
    state: &AppState,
    session: &Session,
    caller: &OperatorCaller,
    id: TenantId,
    refused: Option<(LimitsForm, String)>,
) -> Result<Html<String>, ApiError> {
    let request_id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_tenant", request_id).await?;
    let tenant = tenants::find(&mut tx, id).await?;
    let adapters = adapters::pinnable(&mut tx, id).await?;
    drop(tx);
    let (form, error) = match refused {
        Some((form, error)) => (form, Some(error)),
        None => (LimitsForm::filled(tenant.limits), None),
    };
    let page = Page::new(session, "operator-tenants");
    render(&TenantPage { page, id, name: tenant.name, fields: form.fields(), adapters, error })
}

async fn edit(
    State(state): State<AppState>,
    session: Session,
    caller: OperatorCaller,
    Path(id): Path<TenantId>,
) -> Result<Html<String>, ApiError> {
    page(&state, &session, &caller, id, None).await
}

async fn set_limits(
    State(state): State<AppState>,
    session: Session,
    caller: OperatorCaller,
    Path(id): Path<TenantId>,
    Form(form): Form<LimitsForm>,
) -> Result<Response, ApiError> {
    let set = match form.read() {
        Ok(limits) => tenants::set_limits(&state.db, &caller, id, limits).await,
        Err(error) => Err(error),
    };
    match set {
        Ok(()) => Ok(Redirect::to("/operator/tenants").into_response()),
        Err(ApiError::NotFound) => Err(ApiError::NotFound),
        Err(error) => {
            let told = told(error)?;
            let status: StatusCode = told.status;
            let shown = page(&state, &session, &caller, id, Some((form, told.message))).await?;
            Ok((status, shown).into_response())
        }
    }
}
