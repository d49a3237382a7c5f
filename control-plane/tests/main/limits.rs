//! Limits that operators set on tenants, and how nodes learn of them.

use crate::nodes::Node;
use crate::plane::{LinkProcess, Plane};
use crate::support::{self, Client, PASSWORD, TestApp, options, send};
use lorikeet_contract::TenantId;
use lorikeet_contract::link::{Limits, ResourceKind, TenantResource};
use lorikeet_contract::rate::RateShare;
use lorikeet_control_plane::create_operator;
use prost::Message;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgConnection;

async fn operator(app: &TestApp) -> Client<'_> {
    create_operator(&options("lk_owner", &app.database), "ops@example.com", PASSWORD)
        .await
        .unwrap();
    app.log_in("ops@example.com").await
}

async fn set(client: &Client<'_>, tenant: &str, limits: Value) -> support::Answer {
    let path = format!("/api/v1/operator/tenants/{tenant}/limits");
    send(client.request(Method::PUT, &path).json(&limits)).await
}

async fn published(owner: &mut PgConnection, tenant: &str) -> TenantResource {
    let payload: Vec<u8> =
        sqlx::query_scalar("select payload from manifest_change where kind = $1 and id = $2")
            .bind(ResourceKind::Tenant as i32)
            .bind(tenant)
            .fetch_one(owner)
            .await
            .unwrap();
    TenantResource::decode(payload.as_slice()).unwrap()
}

#[tokio::test]
async fn limits_that_an_operator_sets_are_stored_published_audited_and_shown_to_the_tenant() {
    let app = TestApp::start().await;
    let (ann, ben) = (app.sign_up("ann").await, app.sign_up("ben").await);
    let operator = operator(&app).await;
    let mut owner = app.owner().await;
    let wanted = json!({
        "max_concurrency": 4, "requests_per_minute": 60, "tokens_per_minute": 100_000,
        "weight": 200, "adapter_host_bytes": 1_000_000_000, "adapter_device_bytes": null,
    });
    let answer = set(&operator, &ann.tenant, wanted.clone()).await;
    assert_eq!((answer.status, &answer.body), (StatusCode::OK, &wanted), "{answer:?}");

    let resource = published(&mut owner, &ann.tenant).await;
    let limits = Limits {
        max_concurrency: Some(4),
        requests_per_minute: Some(60),
        tokens_per_minute: Some(100_000),
        weight: Some(200),
        adapter_host_bytes: Some(1_000_000_000),
        adapter_device_bytes: None,
    };
    assert_eq!((resource.name.as_str(), resource.limits), ("ann", Some(limits)));
    assert_eq!(published(&mut owner, &ben.tenant).await.limits, None);
    assert_eq!(ann.get("/api/v1/limits").await.body, wanted);
    let (actor, detail): (String, Value) = sqlx::query_as(
        "select actor, detail from audit where action = 'tenant.set_limits' and tenant_id = $1",
    )
    .bind(ann.tenant.parse::<TenantId>().unwrap().as_uuid())
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert!(actor.starts_with("user usr_") && detail == wanted, "{actor} {detail}");
    let listed = operator.get("/api/v1/operator/tenants").await.body;
    assert_eq!(listed["tenants"][0]["limits"], wanted);

    // The whole is replaced: what is left out ends.
    set(&operator, &ann.tenant, json!({ "weight": 50 })).await;
    let limits = published(&mut owner, &ann.tenant).await.limits.unwrap();
    assert_eq!(limits, Limits { weight: Some(50), ..Limits::default() });
    set(&operator, &ann.tenant, json!({})).await;
    assert_eq!(published(&mut owner, &ann.tenant).await.limits, None);
}

#[tokio::test]
async fn a_limit_that_cannot_be_is_named_and_nothing_changes() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let operator = operator(&app).await;
    set(&operator, &ann.tenant, json!({ "weight": 7 })).await;
    for (limits, param) in [
        (json!({ "weight": 0 }), "weight"),
        (json!({ "requests_per_minute": -1 }), "requests_per_minute"),
        (json!({ "tokens_per_minute": 1e13 as i64 }), "tokens_per_minute"),
    ] {
        let answer = set(&operator, &ann.tenant, limits).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer:?}");
        assert_eq!(answer.body["error"]["param"], param);
    }
    // A typing error must not pass for "no limit".
    let answer = set(&operator, &ann.tenant, json!({ "request_per_minute": 1 })).await;
    assert!(answer.status.is_client_error(), "{answer:?}");
    assert_eq!(ann.get("/api/v1/limits").await.body["weight"], 7);
    let nobody = set(&operator, &TenantId::new().to_string(), json!({})).await;
    assert_eq!(nobody.status, StatusCode::NOT_FOUND);
    assert_eq!(set(&ann, &ann.tenant, json!({})).await.code(), "operator_only");
}

#[tokio::test]
async fn limits_are_set_with_the_form_and_a_mistake_stays_in_it() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let operator = operator(&app).await;
    let path = format!("/operator/tenants/{}/limits", ann.tenant);
    let submit = async |fields: &[(&str, &str)]| {
        let request = operator.request(Method::POST, &path).form(fields);
        let request = request.header("accept", "text/html").header("sec-fetch-site", "same-origin");
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let (status, text) = submit(&[("requests_per_minute", "many"), ("weight", "7")]).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(text.contains("must be a whole number") && text.contains("value=\"many\""), "{text}");
    let (status, _) = submit(&[("requests_per_minute", "1200"), ("weight", "")]).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    for (client, page) in [(&operator, "/operator/tenants"), (&ann, "/usage")] {
        let request = client.request(Method::GET, page).header("accept", "text/html");
        let text = request.send().await.unwrap().text().await.unwrap();
        assert!(text.contains("1,200 requests per minute"), "{page}: {text}");
    }
}

#[tokio::test]
async fn connected_nodes_share_the_rates_and_share_anew_when_one_comes_or_goes() {
    let plane = Plane::new().await;
    let (one, two) = (LinkProcess::start(&plane).await, LinkProcess::start(&plane).await);
    let share = |nodes, position| Some(RateShare::new(nodes, position).unwrap());
    // Ids are in the order of their making.
    let (first, second) = (Node::new(), Node::new());
    let mut first = first.attach(&one).await;
    first.follow(|node| node.rate_share == share(1, 0)).await;
    let mut second = second.attach(&two).await;
    second.follow(|node| node.rate_share == share(2, 1)).await;
    first.follow(|node| node.rate_share == share(2, 0)).await;
    drop(second.hang_up());
    first.follow(|node| node.rate_share == share(1, 0)).await;
}
