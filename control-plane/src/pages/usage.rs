//! What a tenant has used.

use super::chart::{self, Chart};
use super::tenants::{LimitRow, limit_rows};
use super::{Page, format, render};
use crate::access::{Access, Registry};
use crate::api::extract::Query;
use crate::auth::{Session, TenantCaller};
use crate::error::ApiError;
use crate::state::AppState;
use crate::tenants;
use crate::usage::period::{Group, Period};
use crate::usage::queries::{self, AdapterUsage, KeyUsage, Series, Sums};
use askama::Template;
use axum::extract::State;
use axum::response::Html;
use lorikeet_contract::key::Scope;
use serde::Deserialize;
use time::OffsetDateTime;

pub(super) fn routes(registry: Registry) -> Registry {
    registry.get("/usage", Access::Tenant(Scope::Read), show)
}

/// Both the tenant's page and the operator's.
#[derive(Template)]
#[template(path = "usage.html")]
pub(super) struct UsagePage {
    pub page: Page,
    pub title: &'static str,
    pub periods: Vec<PeriodLink>,
    pub tiles: Vec<Tile>,
    pub unit: &'static str,
    pub chart: Chart,
    /// The tenant's own; of a tenant's page only.
    pub limits: Vec<LimitRow>,
    pub breakdowns: Vec<Breakdown>,
}

pub(super) struct PeriodLink {
    pub value: &'static str,
    pub text: &'static str,
    pub current: bool,
}

pub(super) struct Tile {
    pub id: &'static str,
    pub label: &'static str,
    pub value: String,
    pub note: String,
}

pub(super) struct Breakdown {
    pub title: &'static str,
    pub column: &'static str,
    pub rows: Vec<BreakdownRow>,
}

pub(super) struct BreakdownRow {
    pub name: String,
    pub requests: String,
    pub prompt_tokens: String,
    pub cached_tokens: String,
    pub completion_tokens: String,
}

impl BreakdownRow {
    pub fn new(name: String, sums: Sums) -> Self {
        Self {
            name,
            requests: format::count(sums.requests),
            prompt_tokens: format::count(sums.prompt_tokens),
            cached_tokens: format::count(sums.cached_tokens),
            completion_tokens: format::count(sums.completion_tokens),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct PeriodChoice {
    period: Option<String>,
}

/// `(value, text, count, group)`; the first is shown without a choice.
const PERIODS: [(&str, &str, i64, Group); 3] = [
    ("24h", "24 hours", 24, Group::Hour),
    ("7d", "7 days", 7 * 24, Group::Hour),
    ("30d", "30 days", 30, Group::Day),
];

impl PeriodChoice {
    fn index(&self) -> usize {
        let chosen = self.period.as_deref();
        PERIODS.iter().position(|(value, ..)| Some(*value) == chosen).unwrap_or(0)
    }

    pub fn period(&self, now: OffsetDateTime) -> Period {
        let (_, _, count, group) = PERIODS[self.index()];
        Period::last(count, group, now)
    }

    pub fn links(&self) -> Vec<PeriodLink> {
        let current = self.index();
        let links = PERIODS.iter().enumerate();
        links
            .map(|(i, (value, text, ..))| PeriodLink { value, text, current: i == current })
            .collect()
    }
}

impl UsagePage {
    pub fn new(
        page: Page,
        title: &'static str,
        choice: &PeriodChoice,
        series: &Series,
        breakdowns: Vec<Breakdown>,
    ) -> Self {
        let totals = series.totals;
        let tile = |id, label, value, note| Tile { id, label, value: format::count(value), note };
        let cached = match totals.prompt_tokens {
            0 => String::new(),
            prompt => format!("{} % from cache", totals.cached_tokens * 100 / prompt),
        };
        let tiles = vec![
            tile("requests", "Requests", totals.requests, String::new()),
            tile("prompt_tokens", "Prompt tokens", totals.prompt_tokens, cached),
            tile("completion_tokens", "Completion tokens", totals.completion_tokens, String::new()),
        ];
        Self {
            page,
            title,
            periods: choice.links(),
            tiles,
            unit: series.group.as_str(),
            chart: chart::tokens(series),
            limits: Vec::new(),
            breakdowns,
        }
    }
}

async fn show(
    State(state): State<AppState>,
    session: Session,
    caller: TenantCaller,
    Query(choice): Query<PeriodChoice>,
) -> Result<Html<String>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let report = queries::usage(&mut tx, choice.period(OffsetDateTime::now_utc())).await?;
    let tenant = tenants::find(&mut tx, caller.tenant).await?;
    drop(tx);
    let by_adapter = Breakdown {
        title: "By adapter",
        column: "Adapter",
        rows: report.by_adapter.into_iter().map(adapter_row).collect(),
    };
    let by_key = Breakdown {
        title: "By key",
        column: "Key",
        rows: report.by_key.into_iter().map(key_row).collect(),
    };
    let page = Page::new(&session, "usage");
    let breakdowns = vec![by_adapter, by_key];
    let limits = limit_rows(tenant.limits);
    render(&UsagePage {
        limits,
        ..UsagePage::new(page, "Usage", &choice, &report.series, breakdowns)
    })
}

fn adapter_row(used: AdapterUsage) -> BreakdownRow {
    BreakdownRow::new(used.adapter.unwrap_or_else(|| "base model".into()), used.sums)
}

fn key_row(used: KeyUsage) -> BreakdownRow {
    let name = match (used.name, used.key_id) {
        (Some(name), Some(id)) => format!("{name} (lk_live_{id}_…)"),
        _ => "without a key".into(),
    };
    BreakdownRow::new(name, used.sums)
}
