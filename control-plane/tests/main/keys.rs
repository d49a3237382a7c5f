//! The life of an API key.

use crate::support::{PASSWORD, TestApp};
use lorikeet_contract::KeyId;
use lorikeet_contract::key::ApiKey;
use lorikeet_contract::link::{KeyResource, ResourceKind};
use prost::Message;
use reqwest::StatusCode;
use serde_json::{Value, json};

#[tokio::test]
async fn a_key_is_shown_once_and_listed_without_its_secret() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let created = ann.create_key(&["read", "inference", "read"]).await;
    assert_eq!(created["scopes"], json!(["inference", "read"]));
    let key = created["key"].as_str().unwrap();
    assert_eq!(ApiKey::parse(key).unwrap().key_id(), created["key_id"]);

    let listed = ann.get("/api/v1/keys").await.body;
    assert_eq!(listed["keys"][0]["id"], created["id"]);
    assert!(!listed.to_string().contains(key));
    let me = app.with_key(key).get("/api/v1/me").await.body;
    assert_eq!(me["tenant"]["id"], *ann.tenant);
    assert_eq!(me["scopes"], json!(["inference", "read"]));
}

#[tokio::test]
async fn a_created_key_is_published_with_its_hash_in_the_same_transaction() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let created = ann.create_key(&["inference"]).await;
    let id = created["id"].as_str().unwrap();
    let (revision, payload): (i64, Vec<u8>) =
        sqlx::query_as("select revision, payload from manifest_change where kind = $1 and id = $2")
            .bind(ResourceKind::Key as i32)
            .bind(id)
            .fetch_one(&mut app.owner().await)
            .await
            .unwrap();
    let resource = KeyResource::decode(&payload[..]).unwrap();
    let key = ApiKey::parse(created["key"].as_str().unwrap()).unwrap();
    assert_eq!(resource.secret_hash, key.secret_hash());
    assert_eq!((resource.tenant_id, resource.id), (ann.tenant.clone(), id.to_owned()));
    assert_eq!(revision, 2, "the tenant came first");
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_and_leaves_tombstone_revocation_and_audit() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let created = ann.create_key(&["manage"]).await;
    let bot = app.with_key(created["key"].as_str().unwrap());
    assert_eq!(bot.get("/api/v1/keys").await.status, StatusCode::OK);

    let path = format!("/api/v1/keys/{}", created["id"].as_str().unwrap());
    assert_eq!(ann.delete(&path).await.status, StatusCode::NO_CONTENT);
    let refused = bot.get("/api/v1/keys").await;
    assert_eq!((refused.status, refused.code()), (StatusCode::UNAUTHORIZED, "invalid_api_key"));
    assert!(ann.get("/api/v1/keys").await.body["keys"][0]["revoked_at"].is_string());
    assert_eq!(ann.delete(&path).await.status, StatusCode::NO_CONTENT, "repeating is harmless");

    let id: KeyId = created["id"].as_str().unwrap().parse().unwrap();
    let mut owner = app.owner().await;
    let (tombstones, revocations, audits): (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from manifest_change where id = $1 and payload is null),
                (select count(*) from revocation where key_id = $2),
                (select count(*) from audit where action = 'key.revoke' and subject = $1
                   and actor like 'user usr_%' and request_id like 'req_%')",
    )
    .bind(id.to_string())
    .bind(id.as_uuid())
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!((tombstones, revocations, audits), (1, 1, 1));
}

#[tokio::test]
async fn scopes_and_expiry_bound_what_a_key_may_do() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let reader = ann.create_key(&["read"]).await;
    let reader = app.with_key(reader["key"].as_str().unwrap());
    assert_eq!(reader.get("/api/v1/keys").await.status, StatusCode::OK);
    let refused = reader.post("/api/v1/keys", json!({ "name": "x", "scopes": ["read"] })).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "insufficient_scope"));
    let logout = reader.post("/api/v1/logout", Value::Null).await;
    assert_eq!(logout.code(), "session_only");

    let mut owner = app.owner().await;
    sqlx::query("update api_key set expires_at = now() - interval '1 second'")
        .execute(&mut owner)
        .await
        .unwrap();
    assert_eq!(reader.get("/api/v1/keys").await.code(), "invalid_api_key");
}

#[tokio::test]
async fn a_key_with_a_wrong_field_is_refused_by_the_fields_name() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    for (body, param) in [
        (json!({ "name": " ", "scopes": ["read"] }), "name"),
        (json!({ "name": "x", "scopes": [] }), "scopes"),
        (json!({ "name": "x", "scopes": ["admin"] }), "scopes"),
        (
            json!({ "name": "x", "scopes": ["read"], "expires_at": "2001-01-01T00:00:00Z" }),
            "expires_at",
        ),
    ] {
        let refused = ann.post("/api/v1/keys", body).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused:?}");
        assert_eq!(refused.body["error"]["param"], param);
    }
}

#[tokio::test]
async fn of_many_requests_at_once_no_more_keys_come_than_the_quota_has_left() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    sqlx::query("update tenant set max_keys = 3").execute(&mut app.owner().await).await.unwrap();
    let body = json!({ "name": "x", "scopes": ["read"] });
    let answers =
        futures::future::join_all((0..10).map(|_| ann.post("/api/v1/keys", body.clone()))).await;
    let created = answers.iter().filter(|a| a.status == StatusCode::CREATED).count();
    assert_eq!(created, 3);
    let refused = answers.iter().filter(|a| a.code() == "quota_exceeded").count();
    assert_eq!(refused, 7);
}

#[tokio::test]
async fn an_old_session_makes_a_key_only_with_the_password() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    sqlx::query("update session set created_at = now() - interval '1 hour'")
        .execute(&mut app.owner().await)
        .await
        .unwrap();
    let body = |password: Value| json!({ "name": "x", "scopes": ["read"], "password": password });
    let asked = ann.post("/api/v1/keys", body(Value::Null)).await;
    assert_eq!((asked.status, asked.code()), (StatusCode::FORBIDDEN, "password_required"));
    assert_eq!(
        ann.post("/api/v1/keys", body(json!("wrong one"))).await.code(),
        "wrong_credentials"
    );
    assert_eq!(ann.post("/api/v1/keys", body(json!(PASSWORD))).await.status, StatusCode::CREATED);
}
