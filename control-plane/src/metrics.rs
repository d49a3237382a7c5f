//! `GET /metrics` of the control plane, on a listener of its own: it asks for no key. What happened here
//! is counted; what all copies share is asked of the database when a page is written.

use crate::db::Db;
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lorikeet_metrics::{CONTENT_TYPE, Counter, CounterBy, Histogram, Kind, Page};
use sqlx::{FromRow, PgConnection};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

const SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
const LAG_SECONDS: [f64; 10] = [0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 3600.0, 21600.0, 86400.0];

/// Counted by this copy since its start.
#[derive(Debug)]
pub struct Metrics {
    /// By method, route and status.
    pub http: CounterBy<(&'static str, String, u16)>,
    pub http_seconds: Histogram,
    /// Clients cut off because they did not take their answers.
    pub slow_readers: Arc<Counter>,
    pub usage_records: Counter,
    usage_lag: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            http: CounterBy::default(),
            http_seconds: Histogram::of_seconds(&SECONDS),
            slow_readers: Arc::default(),
            usage_records: Counter::default(),
            usage_lag: Histogram::of_seconds(&LAG_SECONDS),
        }
    }
}

impl Metrics {
    /// A request that ended then is in the ledger now. Clocks may differ: never less than nothing.
    pub fn ingested(&self, ended_at: OffsetDateTime) {
        let lag = (OffsetDateTime::now_utc() - ended_at).max(Duration::ZERO);
        self.usage_lag.observe_duration(lag.unsigned_abs());
    }
}

/// What every copy sees alike.
#[derive(FromRow)]
struct Shared {
    manifest_revision: i64,
    nodes_connected: i64,
    nodes_away: i64,
    /// Of the connected node that is furthest behind.
    revisions_behind: i64,
    jobs_due: i64,
    jobs_running: i64,
    jobs_given_up: i64,
    oldest_due_job_seconds: f64,
    logs_quarantined: i64,
}

#[derive(Clone)]
struct Sources {
    metrics: Arc<Metrics>,
    db: Db,
}

pub fn router(metrics: Arc<Metrics>, db: Db) -> Router {
    Router::new().route("/metrics", get(show)).with_state(Sources { metrics, db })
}

async fn show(State(Sources { metrics, db }): State<Sources>) -> Response {
    let mut page = Page::default();
    page.process();
    let help = "The program.";
    let labels = [("version", env!("CARGO_PKG_VERSION"))];
    page.family("lorikeet_build_info", Kind::Gauge, help).sample(&labels, 1);
    metrics.write(&mut page);
    let shared = async { shared(&mut *db.statistics().await?).await }.await;
    if let Err(error) = &shared {
        tracing::warn!(%error, "metrics without what the database would add");
    }
    let help = "1 when the database answered; at 0 what it would add is missing.";
    page.gauge("lorikeet_database_up", help, u8::from(shared.is_ok()));
    if let Ok(shared) = shared {
        shared.write(&mut page);
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], page.into_text()).into_response()
}

impl Metrics {
    fn write(&self, page: &mut Page) {
        let help = "HTTP requests answered.";
        let mut family = page.family("lorikeet_http_requests_total", Kind::Counter, help);
        for ((method, route, status), count) in self.http.snapshot() {
            let status = status.to_string();
            family.sample(&[("method", method), ("route", &route), ("status", &status)], count);
        }
        let help = "From a request's arrival to its answer.";
        page.histogram("lorikeet_http_request_seconds", help, &self.http_seconds);
        let help = "Clients cut off because they did not take their answers.";
        page.counter("lorikeet_slow_readers_total", help, self.slow_readers.get());
        let help = "Usage records taken in.";
        page.counter("lorikeet_usage_records_total", help, self.usage_records.get());
        let help = "From a request's end at its node to its place in the ledger.";
        page.histogram("lorikeet_usage_ingest_lag_seconds", help, &self.usage_lag);
    }
}

impl Shared {
    fn write(&self, page: &mut Page) {
        let help = "Nodes that are not disabled, by whether their link is up.";
        let mut family = page.family("lorikeet_nodes", Kind::Gauge, help);
        family.sample(&[("state", "connected")], self.nodes_connected);
        family.sample(&[("state", "away")], self.nodes_away);
        let help = "Revisions that the last of the connected nodes has yet to acknowledge.";
        page.gauge("lorikeet_nodes_revisions_behind", help, self.revisions_behind);
        page.gauge("lorikeet_manifest_revision", "Of the manifest.", self.manifest_revision);
        let help = "Background jobs: due, running, or given up after their last attempt.";
        let mut family = page.family("lorikeet_jobs", Kind::Gauge, help);
        family.sample(&[("state", "due")], self.jobs_due);
        family.sample(&[("state", "running")], self.jobs_running);
        family.sample(&[("state", "given_up")], self.jobs_given_up);
        let help = "How long the job that waits longest has been due; 0 when none is.";
        page.gauge("lorikeet_oldest_due_job_seconds", help, self.oldest_due_job_seconds);
        let help = "Usage logs from which nothing more is taken until an operator has looked.";
        page.gauge("lorikeet_usage_logs_quarantined", help, self.logs_quarantined);
    }
}

async fn shared(connection: &mut PgConnection) -> Result<Shared, sqlx::Error> {
    sqlx::query_as(
        "select c.revision as manifest_revision, n.*, j.*,
           (select count(*) from usage_cursor where quarantine_reason is not null)
             as logs_quarantined
         from manifest_counter c,
           lateral (
             select count(*) filter (where connected) as nodes_connected,
               count(*) filter (where not connected) as nodes_away,
               coalesce(max(greatest(c.revision - acked_revision, 0)) filter (where connected), 0)
                 as revisions_behind
             from node where disabled_at is null) n,
           (select
               count(*) filter (where failed_at is null and run_at <= now()
                 and coalesce(locked_until < now(), true)) as jobs_due,
               count(*) filter (where failed_at is null and locked_until >= now()) as jobs_running,
               count(*) filter (where failed_at is not null) as jobs_given_up,
               coalesce(extract(epoch from now() - min(run_at) filter (where failed_at is null
                 and run_at <= now() and coalesce(locked_until < now(), true))), 0)::float8
                 as oldest_due_job_seconds
             from job where finished_at is null) j",
    )
    .fetch_one(connection)
    .await
}
