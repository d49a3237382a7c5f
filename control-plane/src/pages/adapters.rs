//! A tenant's adapters: what is there, what becomes of an upload, and how to call one.

use super::{Page, format, render};
use crate::access::{Access, Registry};
use crate::adapters::alias::Alias;
use crate::adapters::{self, AdapterSummary, Version, VersionState};
use crate::api::extract::Path;
use crate::auth::{Session, TenantCaller};
use crate::error::ApiError;
use crate::state::AppState;
use askama::Template;
use axum::extract::State;
use axum::response::{Html, Redirect};
use lorikeet_contract::Linear;
use lorikeet_contract::key::Scope;
use sqlx::PgConnection;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/adapters", Access::Tenant(Scope::Read), list)
        .get("/adapters-table", Access::Tenant(Scope::Read), table)
        .get("/adapters/{name}", Access::Tenant(Scope::Read), show)
        .get("/adapters/{name}/versions", Access::Tenant(Scope::Read), versions_table)
        .post("/adapters/{name}/disable", Access::Tenant(Scope::Manage), disable)
        .post("/adapters/{name}/enable", Access::Tenant(Scope::Manage), enable)
        .post("/adapters/{name}/delete", Access::Tenant(Scope::Manage), delete)
}

#[derive(Template)]
#[template(path = "adapters.html")]
struct AdaptersPage {
    page: Page,
    steps: Steps,
    quota: String,
    adapters: Vec<AdapterRow>,
    moving: bool,
}

#[derive(Template)]
#[template(path = "partials/adapters_table.html")]
struct AdaptersTable {
    adapters: Vec<AdapterRow>,
    moving: bool,
}

#[derive(Template)]
#[template(path = "adapter.html")]
struct AdapterPage {
    page: Page,
    name: String,
    disabled: bool,
    latest_version: i32,
    aliases: Vec<Alias>,
    api_base_url: String,
    versions: Vec<VersionRow>,
    moving: bool,
}

#[derive(Template)]
#[template(path = "partials/versions_table.html")]
struct VersionsTable {
    name: String,
    versions: Vec<VersionRow>,
    moving: bool,
}

/// What a newcomer has done so far.
#[derive(sqlx::FromRow)]
struct Steps {
    has_key: bool,
    has_adapter: bool,
    has_usage: bool,
}

impl Steps {
    fn all_done(&self) -> bool {
        self.has_key && self.has_adapter && self.has_usage
    }
}

struct AdapterRow {
    name: String,
    /// Of the newest version.
    latest: VersionRow,
    disabled: bool,
    /// An older version still answers while the newest does not.
    serving: Option<i32>,
}

struct VersionRow {
    version: i32,
    state: VersionState,
    state_text: &'static str,
    state_class: &'static str,
    /// Why it failed, or what it waits for.
    note: Option<String>,
    rank: String,
    targets: String,
    parameters: String,
    size: String,
    digest: String,
    created_at: String,
    created_at_iso: String,
}

impl VersionRow {
    fn new(version: Version, no_node: bool) -> Self {
        let (state_text, state_class) = match version.state {
            VersionState::Uploading => ("uploading", "busy"),
            VersionState::Verifying => ("being checked", "busy"),
            VersionState::Verified => ("going out to nodes", "busy"),
            VersionState::Ready => ("ready", "good"),
            VersionState::Failed => ("refused", "bad"),
            VersionState::Deleted => ("deleted", ""),
        };
        let waiting = adapters::waiting_for(version.state, no_node);
        let waiting = waiting.map(|what| format!("Waits for {what}."));
        let dash = || "–".to_owned();
        Self {
            version: version.version,
            state: version.state,
            state_text,
            state_class,
            note: version.error.map(|error| format::sentence(&error)).or(waiting),
            rank: version.rank.map_or_else(dash, |rank| rank.to_string()),
            targets: short_targets(&version.targets),
            parameters: version.parameters.map_or_else(dash, format::short_count),
            size: format::bytes(version.source_bytes),
            digest: version.digest.map_or_else(dash, |d| hex::encode(d.get(..6).unwrap_or(&d))),
            created_at: format::moment(version.created_at),
            created_at_iso: format::iso(version.created_at),
        }
    }
}

/// `q, k, v, o` for `q_proj, k_proj, v_proj, o_proj`.
fn short_targets(targets: &[String]) -> String {
    if targets.len() == Linear::ALL.len() {
        return "all linear".to_owned();
    }
    let short: Vec<_> = targets.iter().map(|t| t.strip_suffix("_proj").unwrap_or(t)).collect();
    short.join(", ")
}

/// Adapters whose first upload was given up have no version to show.
async fn rows(tx: &mut PgConnection) -> Result<(Vec<AdapterRow>, bool), ApiError> {
    let no_node = adapters::base_model(tx).await?.is_none();
    let summaries = adapters::list(tx).await?;
    let rows: Vec<AdapterRow> = summaries
        .into_iter()
        .filter_map(|AdapterSummary { name, latest, serving_version, disabled, .. }| {
            let latest = latest?;
            let serving = serving_version.filter(|serving| *serving != latest.version);
            let latest = VersionRow::new(latest, no_node);
            Some(AdapterRow { name, latest, disabled, serving })
        })
        .collect();
    let moving = rows.iter().any(|row| row.latest.state.is_moving());
    Ok((rows, moving))
}

async fn list(
    State(state): State<AppState>,
    session: Session,
    caller: TenantCaller,
) -> Result<Html<String>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let (adapters, moving) = rows(&mut tx).await?;
    let steps: Steps = sqlx::query_as(
        "select exists (select from api_key where revoked_at is null) as has_key,
                exists (select from adapter_version where state = 'ready') as has_adapter,
                exists (select from usage_hourly) as has_usage",
    )
    .fetch_one(&mut *tx)
    .await?;
    let quota = quota(&mut tx).await?;
    drop(tx);
    render(&AdaptersPage { page: Page::new(&session, "adapters"), steps, quota, adapters, moving })
}

async fn quota(tx: &mut PgConnection) -> Result<String, ApiError> {
    let (adapters, max_adapters, bytes, max_bytes): (i64, i32, i64, i64) = sqlx::query_as(
        "select (select count(*) from adapter where deleted_at is null), max_adapters,
                (select coalesce(sum(source_bytes), 0)::bigint from adapter_version
                 where state not in ('failed', 'deleted')), max_adapter_bytes
         from tenant",
    )
    .fetch_one(tx)
    .await?;
    let (bytes, max_bytes) = (format::bytes(bytes), format::bytes(max_bytes));
    Ok(format!("{adapters} of {max_adapters} adapters, {bytes} of {max_bytes}"))
}

async fn table(
    State(state): State<AppState>,
    caller: TenantCaller,
) -> Result<Html<String>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let (adapters, moving) = rows(&mut tx).await?;
    render(&AdaptersTable { adapters, moving })
}

async fn version_rows(tx: &mut PgConnection, name: &str) -> Result<Vec<VersionRow>, ApiError> {
    let no_node = adapters::base_model(tx).await?.is_none();
    let adapter = adapters::find(tx, name).await?.ok_or(ApiError::NotFound)?;
    let versions = adapters::versions(tx, adapter.id).await?;
    Ok(versions.into_iter().map(|version| VersionRow::new(version, no_node)).collect())
}

async fn show(
    State(state): State<AppState>,
    session: Session,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<Html<String>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let versions = version_rows(&mut tx, &name).await?;
    let adapter = adapters::find(&mut tx, &name).await?.ok_or(ApiError::NotFound)?;
    drop(tx);
    render(&AdapterPage {
        page: Page::new(&session, "adapters"),
        disabled: adapter.disabled,
        aliases: adapter.aliases,
        latest_version: versions.first().map_or(1, |version| version.version),
        api_base_url: state.config.api_base_url.clone(),
        moving: versions.iter().any(|version| version.state.is_moving()),
        name,
        versions,
    })
}

async fn versions_table(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<Html<String>, ApiError> {
    let mut tx = state.db.app.read(&caller.acting()).await?;
    let versions = version_rows(&mut tx, &name).await?;
    let moving = versions.iter().any(|version| version.state.is_moving());
    render(&VersionsTable { name, versions, moving })
}

async fn disable(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<Redirect, ApiError> {
    set_disabled(&state, &caller, &name, true).await
}

async fn enable(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<Redirect, ApiError> {
    set_disabled(&state, &caller, &name, false).await
}

async fn set_disabled(
    state: &AppState,
    caller: &TenantCaller,
    name: &str,
    disabled: bool,
) -> Result<Redirect, ApiError> {
    adapters::set_disabled(&state.db.app, &caller.acting(), name, disabled).await?;
    // A name that the adapter has is one that an address can hold.
    Ok(Redirect::to(&format!("/adapters/{name}")))
}

async fn delete(
    State(state): State<AppState>,
    caller: TenantCaller,
    Path(name): Path<String>,
) -> Result<Redirect, ApiError> {
    adapters::delete(&state.db.app, &caller.acting(), &name).await?;
    Ok(Redirect::to("/adapters"))
}
