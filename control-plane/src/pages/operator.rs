//! What operators see across tenants. Each look leaves an audit row, so nothing here reloads itself.

use super::usage::{Breakdown, BreakdownRow, PeriodChoice, UsagePage};
use super::{Page, format, render};
use crate::access::{Access, Registry};
use crate::api::extract::Query;
use crate::auth::{OperatorCaller, Session};
use crate::error::ApiError;
use crate::link::status::{NodeStatus, ResidentAdapter, TierStatus, nodes};
use crate::state::AppState;
use crate::usage::queries::operator_usage;
use crate::usage::reconcile::{Reconciliation, reconcile};
use askama::Template;
use axum::extract::State;
use axum::response::{Html, Redirect};
use time::OffsetDateTime;

pub(super) fn routes(registry: Registry) -> Registry {
    registry
        .get("/operator", Access::Operator, async || Redirect::to("/operator/usage"))
        .get("/operator/usage", Access::Operator, show_usage)
        .get("/operator/nodes", Access::Operator, show_nodes)
}

async fn show_usage(
    State(state): State<AppState>,
    session: Session,
    caller: OperatorCaller,
    Query(choice): Query<PeriodChoice>,
) -> Result<Html<String>, ApiError> {
    let id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_usage", id).await?;
    let report = operator_usage(&mut tx, choice.period(OffsetDateTime::now_utc())).await?;
    drop(tx);
    let rows = report.by_tenant.into_iter().map(|t| BreakdownRow::new(t.name, t.sums)).collect();
    let breakdowns = vec![Breakdown { title: "By tenant", column: "Tenant", rows }];
    let page = Page::new(&session, "operator-usage");
    render(&UsagePage::new(page, "Usage of all tenants", &choice, &report.series, breakdowns))
}

/// Adapters shown of each node; the API lists more.
const MAX_ADAPTER_ROWS: usize = 100;

#[derive(Template)]
#[template(path = "operator_nodes.html")]
struct NodesPage {
    page: Page,
    revision: i64,
    nodes: Vec<NodeRow>,
    reconcile: Books,
}

struct NodeRow {
    id: String,
    /// Enough of the id to tell nodes apart; its end is random, its start is a time.
    short_id: String,
    name: String,
    state_text: &'static str,
    state_class: &'static str,
    notes: Vec<String>,
    acked_revision: i64,
    model: String,
    backend: String,
    /// Adapters and bytes by tier, the fastest first.
    tiers: Vec<String>,
    last_seen: String,
    adapters: Vec<AdapterRow>,
    /// Adapters beyond those shown.
    more_adapters: String,
}

struct AdapterRow {
    tenant_id: String,
    tenant: String,
    /// With its version; a part of the digest where the name is not known any more.
    adapter: String,
    /// To pin it by; None when it is not known any more.
    name: Option<String>,
    pinned: bool,
    tier: String,
    class: &'static str,
    bytes: String,
    /// Whether it is pinned, and what is wrong.
    notes: Vec<String>,
}

struct Books {
    text: &'static str,
    class: &'static str,
    checks: Vec<Check>,
    logs: Vec<LogRow>,
}

/// Two numbers that must be equal.
struct Check {
    name: &'static str,
    left: String,
    right: String,
}

struct LogRow {
    node: String,
    log: String,
    seq: String,
    note: String,
}

async fn show_nodes(
    State(state): State<AppState>,
    session: Session,
    caller: OperatorCaller,
) -> Result<Html<String>, ApiError> {
    let now = OffsetDateTime::now_utc();
    let id = caller.request_id.as_deref();
    let mut tx = state.db.operator(caller.user, "operator.read_nodes", id).await?;
    let status = nodes(&mut tx).await?;
    let books = reconcile(&mut tx, now).await?;
    drop(tx);
    render(&NodesPage {
        page: Page::new(&session, "operator-nodes"),
        revision: status.revision,
        nodes: status.nodes.into_iter().map(|node| NodeRow::new(node, now)).collect(),
        reconcile: Books::new(&books, now),
    })
}

impl NodeRow {
    fn new(node: NodeStatus, now: OffsetDateTime) -> Self {
        let (state_text, state_class) = match (node.disabled, node.connected, node.behind) {
            (true, ..) => ("disabled", "bad"),
            (_, false, _) => ("away", "warn"),
            (_, true, 0) => ("up to date", "good"),
            (_, true, _) => ("catching up", "busy"),
        };
        let mut notes = Vec::new();
        if !node.connected && node.may_still_accept > 0 {
            notes.push(format!("may still accept {} revoked keys", node.may_still_accept));
        }
        notes.extend(
            node.rejections
                .iter()
                .map(|r| format!("refuses {} {}: {}", r.kind, r.resource_id, r.reason)),
        );
        // An adapter is counted where it is fastest, its bytes in every tier that has them.
        let tier = |name: &str, tier: &TierStatus, counted: &str| {
            let used = format::bytes(tier.used_bytes.cast_signed());
            let capacity = format::bytes(tier.capacity_bytes.cast_signed());
            match tier.adapters {
                0 => format!("{name}: {used} of {capacity}"),
                count => format!("{name}: {used} of {capacity}, {count} {counted}"),
            }
        };
        let tiers = vec![
            tier("device", &node.device, "loaded"),
            tier("host", &node.host, "more"),
            tier("disk", &node.disk, "more"),
        ];
        let id = node.id.to_string();
        let shown = node.adapters.len().min(MAX_ADAPTER_ROWS);
        let more = node.adapters_total.saturating_sub(shown as u64).cast_signed();
        Self {
            short_id: format!("…{}", &id[id.len() - 8..]),
            id,
            name: node.name,
            state_text,
            state_class,
            notes,
            acked_revision: node.acked_revision,
            model: node.base_model,
            backend: node.backend,
            tiers,
            last_seen: format::ago(node.last_seen_at, now),
            adapters: node.adapters.into_iter().take(shown).map(AdapterRow::new).collect(),
            more_adapters: if more > 0 { format::count(more) } else { String::new() },
        }
    }
}

impl AdapterRow {
    fn new(adapter: ResidentAdapter) -> Self {
        let class = match adapter.tier.as_str() {
            "device" => "good",
            "fetching" => "busy",
            "failed" => "bad",
            _ => "",
        };
        let mut notes = Vec::new();
        match (adapter.pinned, adapter.pin_refusal.as_str()) {
            (false, _) => {}
            (true, "") => notes.push("pinned".to_owned()),
            (true, refusal) => notes.push(format!("pinned, but not kept: {refusal}")),
        }
        if !adapter.error.is_empty() {
            notes.push(adapter.error);
        }
        // Content of which no version is left has no name any more.
        let digest = adapter.digest.get(..12).unwrap_or(&adapter.digest);
        let shown = if adapter.adapter.is_empty() { digest } else { &adapter.adapter };
        let name = adapter.adapter.split_once('@').map(|(name, _)| name.to_owned());
        Self {
            adapter: shown.to_owned(),
            name,
            pinned: adapter.pinned,
            tenant_id: adapter.tenant_id,
            tenant: adapter.tenant,
            tier: adapter.tier,
            class,
            bytes: format::bytes(adapter.bytes.cast_signed()),
            notes,
        }
    }
}

impl Books {
    fn new(books: &Reconciliation, now: OffsetDateTime) -> Self {
        let (text, class) =
            if books.agrees() { ("the books agree", "good") } else { ("drift", "bad") };
        let (events, hourly) = (books.events, books.hourly);
        let check = |name, left, right| Check {
            name,
            left: format::count(left),
            right: format::count(right),
        };
        let checks = vec![
            check("Requests, 48 h", events.requests, hourly.requests),
            check("Prompt tokens, 48 h", events.prompt_tokens, hourly.prompt_tokens),
            check("Completion tokens, 48 h", events.completion_tokens, hourly.completion_tokens),
            check("Records set aside", books.quarantined_records, 0),
        ];
        let logs = books.cursors.iter().map(|cursor| LogRow {
            node: cursor.node.clone(),
            log: format!("{} · epoch {}", cursor.log_id, cursor.epoch),
            seq: format::count(cursor.seq),
            note: match &cursor.quarantine_reason {
                Some(reason) => format!("in quarantine: {reason}"),
                None => format::ago(cursor.updated_at, now),
            },
        });
        Self { text, class, checks, logs: logs.collect() }
    }
}
