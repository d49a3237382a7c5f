//! A tenant's own usage and limits.

use super::description::anything;
use super::extract::Query;
use crate::access::{Access, Registry};
use crate::auth::TenantCaller;
use crate::error::ApiError;
use crate::state::AppState;
use crate::tenants::{self, TenantLimits};
use crate::usage::period::{Group, Period};
use crate::usage::queries::{UsageReport, usage};
use axum::Json;
use axum::extract::State;
use lorikeet_contract::key::Scope;
use lorikeet_reference::{Operation, named};
use serde::Deserialize;
use serde_json::json;
use time::format_description::well_known::{Iso8601, Rfc3339};
use time::{Date, OffsetDateTime};

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/api/v1/usage", Access::Tenant(Scope::Read), show)
        .described(in_period("Tokens and requests").answers(200, "By hour or day", anything()))
        .get("/api/v1/limits", Access::Tenant(Scope::Read), limits)
        .described(Operation::new("What the tenant is limited to").answers(
            200,
            "The limits",
            named("Limits"),
        ))
}

/// An operation that takes a [`PeriodQuery`].
pub(super) fn in_period(summary: &'static str) -> Operation {
    let what = "A day (2026-11-24) or a time (RFC 3339)";
    let moment =
        json!({ "type": "string", "anyOf": [{ "format": "date" }, { "format": "date-time" }] });
    Operation::new(summary).query("from", what, moment.clone()).query("to", what, moment).query(
        "group",
        "What one row covers",
        json!({ "enum": ["hour", "day"] }),
    )
}

/// `from` and `to` are days (2026-11-24) or times (RFC 3339); the hour or day of each is part of
/// the period. Without them it is the last 30 days, or the last 24 hours.
#[derive(Debug, Deserialize)]
pub(super) struct PeriodQuery {
    from: Option<String>,
    to: Option<String>,
    group: Option<String>,
}

impl PeriodQuery {
    pub(super) fn period(&self, now: OffsetDateTime) -> Result<Period, ApiError> {
        let group = match &self.group {
            None => Group::Day,
            Some(text) => Group::parse(text)
                .ok_or_else(|| ApiError::invalid("group", "group is `hour` or `day`"))?,
        };
        let to = match &self.to {
            Some(text) => time_of("to", text)?,
            None => now,
        };
        let Some(from) = &self.from else {
            let count = match group {
                Group::Hour => 24,
                Group::Day => 30,
            };
            // Only the end can be out of range: `last` reckons back from it.
            Period::new(to, to, group).map_err(|e| ApiError::invalid("to", e.to_string()))?;
            return Ok(Period::last(count, group, to));
        };
        Period::new(time_of("from", from)?, to, group)
            .map_err(|e| ApiError::invalid("from", e.to_string()))
    }
}

fn time_of(param: &'static str, text: &str) -> Result<OffsetDateTime, ApiError> {
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| Date::parse(text, &Iso8601::DATE).map(|day| day.midnight().assume_utc()))
        .map_err(|_| {
            let example = "a day (2026-11-24) or a time (2026-11-24T08:00:00Z)";
            ApiError::invalid(param, format!("{param} must be {example}"))
        })
}

async fn show(
    State(state): State<AppState>,
    caller: TenantCaller,
    Query(query): Query<PeriodQuery>,
) -> Result<Json<UsageReport>, ApiError> {
    let period = query.period(OffsetDateTime::now_utc())?;
    let mut tx = state.db.app.read(&caller.acting()).await?;
    Ok(Json(usage(&mut tx, period).await?))
}

async fn limits(
    State(state): State<AppState>,
    caller: TenantCaller,
) -> Result<Json<TenantLimits>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    Ok(Json(tenants::find(&mut tx, caller.tenant).await?.limits))
}
