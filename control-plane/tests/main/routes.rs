//! Walks every route that is registered, whatever it does.

use crate::support::{Answer, Client, TestApp, send};
use lorikeet_contract::key::Scope;
use lorikeet_contract::{TenantId, UploadId};
use lorikeet_control_plane::access::{Access, Method, Route};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Everything that answers someone unknown.
const PUBLIC: [(Method, &str); 12] = [
    (Method::Get, "/openapi.json"),
    (Method::Get, "/docs"),
    (Method::Get, "/docs.css"),
    (Method::Get, "/api/v1/service"),
    (Method::Post, "/api/v1/signup"),
    (Method::Post, "/api/v1/login"),
    (Method::Get, "/static/{*name}"),
    (Method::Get, "/"),
    (Method::Get, "/signup"),
    (Method::Post, "/signup"),
    (Method::Get, "/login"),
    (Method::Post, "/login"),
];

/// What of `client`'s tenant a path parameter can name.
async fn sample(client: &Client<'_>, parameter: &str) -> String {
    match parameter {
        "key_id" => client.create_key(&["read"]).await["id"].as_str().unwrap().to_owned(),
        "name" => sample_adapter(client).await.0,
        "version" => "1".to_owned(),
        "upload" => sample_upload(client).await,
        "tenant" => client.tenant.clone(),
        "alias" => "stable".to_owned(),
        _ => panic!("no sample for the path parameter `{parameter}`: add one here"),
    }
}

/// An adapter's name and its version's id.
async fn sample_adapter(client: &Client<'_>) -> (String, Uuid) {
    let id = Uuid::now_v7();
    let name = format!("a-{}", id.simple());
    let tenant: TenantId = client.tenant.parse().unwrap();
    let mut owner = client.app.owner().await;
    for statement in [
        "insert into adapter (id, tenant_id, name) values ($1, $2, 'a-' || replace($1::text, '-', ''))",
        "insert into adapter_version (id, tenant_id, adapter_id, version, state)
           values ($1, $2, $1, 1, 'uploading')",
        "insert into alias (id, tenant_id, adapter_id, alias, version_id)
           values ($1, $2, $1, 'stable', $1)",
    ] {
        let query = sqlx::query(statement).bind(id).bind(tenant.as_uuid());
        query.execute(&mut owner).await.unwrap();
    }
    (name, id)
}

async fn sample_upload(client: &Client<'_>) -> String {
    let (_, version) = sample_adapter(client).await;
    let tenant: TenantId = client.tenant.parse().unwrap();
    let upload = UploadId::new();
    let file = json!({
        "name": "adapter_config.json", "bytes": 1, "part_bytes": 1, "object_key": "key",
        "s3_upload_id": "id",
    });
    sqlx::query(
        "insert into upload (id, tenant_id, version_id, state, files, expires_at)
         values ($1, $2, $3, 'open', $4, now() + interval '1 hour')",
    )
    .bind(upload.as_uuid())
    .bind(tenant.as_uuid())
    .bind(version)
    .bind(json!([file]))
    .execute(&mut client.app.owner().await)
    .await
    .unwrap();
    upload.to_string()
}

/// A body that the route accepts, so that the answer is about the path.
fn sample_body(route: &Route) -> Value {
    match route.path {
        "/api/v1/uploads/{upload}/parts" => {
            let part = json!({
                "file": "adapter_config.json", "number": 1, "etag": "etag", "bytes": 1,
            });
            json!({ "parts": [part] })
        }
        "/api/v1/adapters/{name}/aliases/{alias}" => json!({ "version": 1 }),
        _ => json!({}),
    }
}

/// Names what the caller is about to make, in its own tenant: nothing of another's.
const MAKES_WHAT_IT_NAMES: [&str; 1] = ["/api/v1/adapters/{name}/versions"];

/// `route`'s path with things of `client`'s tenant in it.
async fn path_of(route: &Route, client: &Client<'_>) -> String {
    let mut segments = Vec::new();
    for segment in route.path.split('/') {
        match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            Some(parameter) => segments.push(sample(client, parameter).await),
            None => segments.push(segment.to_owned()),
        }
    }
    segments.join("/")
}

async fn call(client: &Client<'_>, route: &Route, path: &str) -> Answer {
    let method = route.method.as_str().parse().unwrap();
    let request = client.request(method, path);
    match route.method {
        Method::Get | Method::Delete => send(request).await,
        Method::Post | Method::Put => send(request.json(&sample_body(route))).await,
    }
}

fn is_page(route: &Route) -> bool {
    !route.path.starts_with("/api/")
}

#[tokio::test]
async fn whoever_is_unknown_is_refused_by_every_route_that_is_not_listed_as_public() {
    let app = TestApp::start().await;
    let anonymous = app.anonymous();
    let forger = app.with_key("lk_live_junk");
    let owner = app.sign_up("ann").await;
    for route in &app.routes {
        if route.access == Access::Public {
            assert!(PUBLIC.contains(&(route.method, route.path)), "{route:?} is not listed");
            continue;
        }
        let path = path_of(route, &owner).await;
        let answer = call(&anonymous, route, &path).await;
        let sent_to_login = is_page(route) && answer.status == StatusCode::SEE_OTHER;
        assert!(
            answer.status == StatusCode::UNAUTHORIZED || sent_to_login,
            "{route:?}: {answer:?}"
        );
        let answer = call(&forger, route, &path).await;
        let sent_to_login = is_page(route) && answer.status == StatusCode::SEE_OTHER;
        assert!(
            answer.status == StatusCode::UNAUTHORIZED || sent_to_login,
            "{route:?}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn another_tenants_things_are_not_found_by_any_route() {
    let app = TestApp::start().await;
    let (ann, eve) = (app.sign_up("ann").await, app.sign_up("eve").await);
    let with_parameters = |r: &&Route| {
        // Operators act across tenants.
        let of_tenants = !matches!(r.access, Access::Public | Access::Operator);
        r.path.contains('{') && of_tenants && !MAKES_WHAT_IT_NAMES.contains(&r.path)
    };
    let mut walked = 0;
    for route in app.routes.iter().filter(with_parameters) {
        let path = path_of(route, &ann).await;
        let answer = call(&eve, route, &path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{route:?}: {answer:?}");
        // The same request means something to whom the thing belongs.
        let answer = call(&ann, route, &path).await;
        assert_ne!(answer.status, StatusCode::NOT_FOUND, "{route:?}: {answer:?}");
        walked += 1;
    }
    assert!(walked > 0);
}

#[tokio::test]
async fn a_key_without_the_scope_is_refused_by_every_route_that_needs_it() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let key =
        async |scopes: &[&str]| app.with_key(ann.create_key(scopes).await["key"].as_str().unwrap());
    let (caller, reader, manager) =
        (key(&["inference"]).await, key(&["inference", "read"]).await, key(&["manage"]).await);
    for route in &app.routes {
        let (refused, code): (Vec<&Client<'_>>, _) = match route.access {
            Access::Public | Access::Authenticated => continue,
            Access::Tenant(Scope::Inference) => (vec![&manager], "insufficient_scope"),
            Access::Tenant(Scope::Read) => (vec![&caller], "insufficient_scope"),
            Access::Tenant(Scope::Manage) => (vec![&caller, &reader], "insufficient_scope"),
            Access::Session => (vec![&caller, &reader, &manager], "session_only"),
            Access::Operator => (vec![&caller, &reader, &manager, &ann], "operator_only"),
        };
        let path = path_of(route, &ann).await;
        for client in refused {
            let answer = call(client, route, &path).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{route:?}: {answer:?}");
            assert!(is_page(route) || answer.code() == code, "{route:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_suspended_tenants_keys_stop_and_its_people_may_only_look() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let bot = ann.create_key(&["manage"]).await;
    let bot = app.with_key(bot["key"].as_str().unwrap());
    sqlx::query("update tenant set suspended_at = now()")
        .execute(&mut app.owner().await)
        .await
        .unwrap();
    assert_eq!(bot.get("/api/v1/keys").await.code(), "tenant_suspended");
    assert_eq!(ann.get("/api/v1/keys").await.status, StatusCode::OK);
    let refused = ann.post("/api/v1/keys", json!({ "name": "x", "scopes": ["read"] })).await;
    assert_eq!(refused.code(), "tenant_suspended");
}

#[tokio::test]
async fn a_viewer_may_look_and_change_nothing() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    sqlx::query("update membership set role = 'viewer'")
        .execute(&mut app.owner().await)
        .await
        .unwrap();
    assert_eq!(ann.get("/api/v1/keys").await.status, StatusCode::OK);
    let refused = ann.post("/api/v1/keys", json!({ "name": "x", "scopes": ["read"] })).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "insufficient_scope"));
}

#[tokio::test]
async fn every_route_of_the_api_is_described_and_nothing_else() {
    let app = TestApp::start().await;
    let document = app.anonymous().get("/openapi.json").await.body;
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let of_the_api = app.routes.iter().filter(|route| !is_page(route));
    let routes: BTreeSet<(String, String)> =
        of_the_api.map(|r| (r.method.as_str().to_owned(), r.path.to_owned())).collect();
    assert_eq!(described, routes);
    let all = document.to_string();
    for reference in all.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
    }
    let page = app.anonymous().request(reqwest::Method::GET, "/docs").send().await.unwrap();
    assert!(page.text().await.unwrap().contains("/api/v1/adapters/{name}"));
}

#[tokio::test]
async fn unknown_addresses_and_methods_are_answered_in_the_same_form() {
    let app = TestApp::start().await;
    let anonymous = app.anonymous();
    let answer = anonymous.get("/api/v1/nothing-here").await;
    assert_eq!((answer.status, answer.code()), (StatusCode::NOT_FOUND, "not_found"));
    let answer = anonymous.delete("/api/v1/service").await;
    assert_eq!(answer.code(), "method_not_allowed");
}
