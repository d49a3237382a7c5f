//! Usage and nodes as the API shows them.

use crate::ingest::{Log, MORNING, of_tenant};
use crate::support::{self, TestApp};
use lorikeet_contract::TenantId;
use lorikeet_contract::link::UsageRecord;
use lorikeet_control_plane::create_operator;
use lorikeet_control_plane::usage::ingest::Ingest;
use reqwest::StatusCode;
use serde_json::json;

const HOUR: i64 = 3_600_000;

/// The usage of two hours and two tenants, one of them with a key.
async fn some_usage(app: &TestApp, mine: TenantId, key: &str, other: TenantId) {
    let mut log = Log::new();
    for (tenant, key_id, hours) in [(mine, key, 0), (mine, "", 0), (mine, key, 2), (other, "", 1)] {
        log.push(UsageRecord {
            key_id: key_id.into(),
            ended_unix_ms: MORNING + hours * HOUR + 1000,
            ..of_tenant(tenant)
        });
    }
    let ingest = Ingest::new(app.state.db.ingest.clone(), app.state.metrics.clone());
    assert_eq!(ingest.ship(log.node, log.all()).await.unwrap().cursor, 4);
}

#[tokio::test]
async fn a_tenant_sees_its_own_usage_by_hour_adapter_and_key() {
    let app = TestApp::start().await;
    let (mine, other) = (app.sign_up("mine").await, app.sign_up("other").await);
    let key = mine.create_key(&["inference", "read"]).await;
    let key_id = key["id"].as_str().unwrap();
    some_usage(&app, mine.tenant.parse().unwrap(), key_id, other.tenant.parse().unwrap()).await;

    let path = "/api/v1/usage?from=2026-11-24T07:30:00Z&to=2026-11-24T11:00:00Z&group=hour";
    let answer = mine.get(path).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let body = &answer.body;
    assert_eq!(body["totals"]["requests"], 3);
    assert_eq!(body["totals"]["prompt_tokens"], 30);
    assert_eq!(body["totals"]["cached_tokens"], 12);
    let points: Vec<_> = body["series"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["requests"].as_i64().unwrap())
        .collect();
    assert_eq!(points, [0, 2, 0, 1, 0], "an hour without requests has a point too");
    assert_eq!(body["series"][0]["start"], "2026-11-24T07:00:00Z");
    assert_eq!(body["by_adapter"][0]["adapter"], json!(null));
    assert_eq!(body["by_adapter"][0]["requests"], 3);
    assert_eq!(body["by_key"][0]["name"], "test");
    assert_eq!(
        (body["by_key"][0]["requests"].as_i64(), body["by_key"].as_array().unwrap().len()),
        (Some(2), 2)
    );

    let read = app.with_key(key["key"].as_str().unwrap());
    let day = read.get("/api/v1/usage?from=2026-11-24&to=2026-11-24&group=day").await;
    assert_eq!(day.body["series"].as_array().map(Vec::len), Some(1));
    assert_eq!(day.body["totals"], body["totals"]);
    assert_eq!(other.get(path).await.body["totals"]["requests"], 1);
}

#[tokio::test]
async fn a_period_that_makes_no_sense_is_refused_by_the_name_of_its_parameter() {
    let app = TestApp::start().await;
    let mine = app.sign_up("mine").await;
    for (query, param) in [
        ("group=week", "group"),
        ("from=yesterday", "from"),
        ("from=2026-01-01&to=x", "to"),
        ("from=2026-01-02&to=2026-01-01", "from"),
        ("from=2026-01-01&to=2026-12-01&group=hour", "from"),
        ("from=9999-12-31&to=9999-12-31", "from"),
        ("to=9999-12-31", "to"),
        ("to=0000-01-01", "to"),
    ] {
        let answer = mine.get(&format!("/api/v1/usage?{query}")).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{query}: {answer:?}");
        assert_eq!(answer.body["error"]["param"], param, "{query}");
    }
    let recent = mine.get("/api/v1/usage").await;
    assert_eq!(recent.body["series"].as_array().map(Vec::len), Some(30));
}

#[tokio::test]
async fn an_operator_sees_all_tenants_and_whether_the_books_agree() {
    let app = TestApp::start().await;
    let (mine, other) = (app.sign_up("mine").await, app.sign_up("other").await);
    let key = mine.create_key(&["inference"]).await;
    let key_id = key["id"].as_str().unwrap();
    some_usage(&app, mine.tenant.parse().unwrap(), key_id, other.tenant.parse().unwrap()).await;
    let owner = support::options("lk_owner", &app.database);
    create_operator(&owner, "ops@example.com", support::PASSWORD).await.unwrap();
    let operator = app.log_in("ops@example.com").await;

    let usage = operator.get("/api/v1/operator/usage?from=2026-11-24&to=2026-11-24").await;
    assert_eq!(usage.body["totals"]["requests"], 4, "{usage:?}");
    let by_tenant: Vec<_> = usage.body["by_tenant"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["requests"].as_i64().unwrap()))
        .collect();
    assert_eq!(by_tenant, [("mine", 3), ("other", 1)]);

    let tenants = operator.get("/api/v1/operator/tenants").await;
    assert_eq!(tenants.body["tenants"][0]["keys"], 1, "{tenants:?}");

    let nodes = operator.get("/api/v1/operator/nodes").await;
    assert_eq!(nodes.status, StatusCode::OK, "{nodes:?}");
    assert_eq!(nodes.body["reconciliation"]["cursors"][0]["seq"], 4);
    assert_eq!(nodes.body["reconciliation"]["quarantined_records"], 0);
    for path in ["usage", "tenants", "nodes"] {
        let path = format!("/api/v1/operator/{path}");
        assert_eq!(mine.get(&path).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    let looks: i64 =
        sqlx::query_scalar("select count(*) from audit where action like 'operator.%'")
            .fetch_one(&mut app.owner().await)
            .await
            .unwrap();
    assert_eq!(looks, 3);
}
