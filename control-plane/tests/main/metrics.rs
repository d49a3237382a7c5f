//! `GET /metrics`, read by a strict reader.

use crate::ingest::{Log, of_tenant};
use crate::support::TestApp;
use lorikeet_contract::link::UsageRecord;
use lorikeet_control_plane::metrics;
use lorikeet_control_plane::usage::ingest::Ingest;
use lorikeet_kit::exposition::Exposition;
use time::OffsetDateTime;
use tokio::net::TcpListener;

async fn page(app: &TestApp) -> Exposition {
    let router = metrics::router(app.state.metrics.clone(), app.state.db.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let server = tokio::spawn(async { axum::serve(listener, router).await });
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    server.abort();
    Exposition::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[tokio::test]
async fn requests_usage_nodes_and_jobs_are_counted() {
    let app = TestApp::start().await;
    let before = page(&app).await;
    let owner = app.sign_up("a").await;
    owner.get("/api/v1/keys").await;
    owner.get("/nowhere/with-a-secret-in-it").await;
    let mut log = Log::new();
    let now = OffsetDateTime::now_utc().unix_timestamp() * 1000;
    log.push(UsageRecord {
        ended_unix_ms: now - 90_000,
        ..of_tenant(owner.tenant.parse().unwrap())
    });
    let ingest = Ingest::new(app.state.db.ingest.clone(), app.state.metrics.clone());
    ingest.ship(log.node, log.all()).await.unwrap();

    let after = page(&app).await;
    let grown = after.monotone();
    assert!(before.monotone().iter().all(|(series, value)| grown[series] >= *value));
    let http = |route, status| {
        let labels = [("method", "GET"), ("route", route), ("status", status)];
        after.value("lorikeet_http_requests_total", &labels)
    };
    assert_eq!(http("/api/v1/keys", "200"), Some(1.0));
    assert_eq!(http("other", "404"), Some(1.0));
    assert_eq!(after.value("lorikeet_usage_records_total", &[]), Some(1.0));
    let lag = |le| after.value("lorikeet_usage_ingest_lag_seconds_bucket", &[("le", le)]);
    assert_eq!((lag("60"), lag("300")), (Some(0.0), Some(1.0)));
    assert_eq!(after.value("lorikeet_database_up", &[]), Some(1.0));
    assert_eq!(after.value("lorikeet_nodes", &[("state", "connected")]), Some(0.0));
    assert_eq!(after.value("lorikeet_jobs", &[("state", "given_up")]), Some(0.0));
    assert!(
        after.value("lorikeet_manifest_revision", &[])
            > before.value("lorikeet_manifest_revision", &[])
    );
}

#[tokio::test]
async fn a_database_that_is_away_leaves_what_was_counted_here() {
    let app = TestApp::start().await;
    app.state.db.close().await;
    let page = page(&app).await;
    assert_eq!(page.value("lorikeet_database_up", &[]), Some(0.0));
    assert_eq!(page.value("lorikeet_jobs", &[("state", "due")]), None);
    assert_eq!(page.value("lorikeet_usage_records_total", &[]), Some(0.0));
}
