//! Changes that other sites try to make with a visitor's cookie, and what else guards a browser.

use crate::support::{PASSWORD, TestApp, send};
use reqwest::{Method, StatusCode};
use serde_json::json;

#[tokio::test]
async fn a_change_by_cookie_needs_the_own_origin_and_the_sessions_token() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let eve = app.sign_up("eve").await;
    let eves_token = eve.get("/api/v1/me").await.body["csrf_token"].as_str().unwrap().to_owned();
    let body = json!({ "name": "x", "scopes": ["read"] });
    let change = || ann.request(Method::POST, "/api/v1/keys").json(&body);

    let foreign = send(change().header("origin", "https://evil.example")).await;
    assert_eq!((foreign.status, foreign.code()), (StatusCode::FORBIDDEN, "cross_origin"));
    let sibling = send(change().header("sec-fetch-site", "same-site")).await;
    assert_eq!(sibling.code(), "cross_origin");
    for wrong in ["", &eves_token] {
        let refused = send(change().header("x-csrf-token", wrong)).await;
        assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "csrf_token"));
    }
    let own = change().header("origin", "http://127.0.0.1:7700");
    assert_eq!(send(own).await.status, StatusCode::CREATED);
    assert_eq!(ann.get("/api/v1/keys").await.body["keys"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_plain_form_may_carry_the_token_as_a_field() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let token = ann.get("/api/v1/me").await.body["csrf_token"].as_str().unwrap().to_owned();
    let cookie = ann.cookie.clone();
    let form = |token: &str| {
        app.anonymous()
            .request(Method::POST, "/api/v1/logout")
            .header("cookie", &cookie)
            .header("sec-fetch-site", "same-origin")
            .form(&[("name", "x"), ("csrf", token)])
    };
    assert_eq!(send(form("")).await.code(), "csrf_token");
    assert_eq!(send(form(&token[1..])).await.code(), "csrf_token");
    assert_eq!(send(form(&token)).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn another_site_can_neither_log_a_visitor_in_nor_sign_one_up() {
    let app = TestApp::start().await;
    app.sign_up("ann").await;
    let body = json!({ "email": "ann@example.com", "password": PASSWORD, "tenant_name": "x" });
    for path in ["/api/v1/login", "/api/v1/signup"] {
        let request = app.anonymous().request(Method::POST, path).json(&body);
        let refused = send(request.header("sec-fetch-site", "cross-site")).await;
        assert_eq!(refused.code(), "cross_origin");
    }
}

#[tokio::test]
async fn a_key_needs_no_token_because_no_browser_adds_it_by_itself() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let key = ann.create_key(&["manage"]).await;
    let request = app
        .with_key(key["key"].as_str().unwrap())
        .request(Method::POST, "/api/v1/keys")
        .header("origin", "https://customer.example")
        .json(&json!({ "name": "x", "scopes": ["read"] }));
    assert_eq!(send(request).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn every_response_carries_an_id_and_the_security_headers() {
    let app = TestApp::start_with(&[
        ("LORIKEET_S3_PUBLIC_ENDPOINT", "https://uploads.example:9/x"),
        ("LORIKEET_PUBLIC_URL", "https://lorikeet.example"),
    ])
    .await;
    for path in ["/api/v1/service", "/api/v1/keys", "/nothing"] {
        let answer = app.anonymous().get(path).await;
        let header = |name: &str| answer.headers[name].to_str().unwrap();
        assert!(header("x-request-id").starts_with("req_"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("cache-control"), "no-store");
        assert!(header("strict-transport-security").starts_with("max-age=31536000"));
        let policy = header("content-security-policy");
        assert!(policy.contains("connect-src 'self' https://uploads.example:9;"), "{policy}");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_or_not_json_is_refused_with_the_reason() {
    let app = TestApp::start().await;
    let anonymous = app.anonymous();
    let large = json!({ "email": "x".repeat(3 << 20), "password": "" });
    let answer = anonymous.post("/api/v1/login", large).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"));
    let request = anonymous
        .request(Method::POST, "/api/v1/login")
        .header("content-type", "application/json")
        .body("{\"email\": 7}");
    let answer = send(request).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "malformed"));
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("email"), "{answer:?}");
}
