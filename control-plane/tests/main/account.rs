//! Sign up, log in, log out.

use crate::support::{PASSWORD, TestApp};
use reqwest::StatusCode;
use serde_json::json;

#[tokio::test]
async fn whoever_signs_up_is_logged_in_and_owns_a_tenant() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let me = ann.get("/api/v1/me").await;
    assert_eq!(me.status, StatusCode::OK);
    assert_eq!(me.body["user"]["email"], "ann@example.com");
    assert_eq!(me.body["tenant"]["role"], "owner");
    assert_eq!(me.body["tenant"]["id"], *ann.tenant);
}

#[tokio::test]
async fn an_address_signs_up_once_whatever_its_case() {
    let app = TestApp::start().await;
    app.sign_up("ann").await;
    let body = json!({ "email": "ANN@example.com", "password": PASSWORD, "tenant_name": "again" });
    let again = app.anonymous().post("/api/v1/signup", body).await;
    assert_eq!((again.status, again.code()), (StatusCode::CONFLICT, "email_taken"));
}

#[tokio::test]
async fn logging_out_ends_the_session_and_no_other() {
    let app = TestApp::start().await;
    let here = app.sign_up("ann").await;
    let there = app.log_in("ann@example.com").await;
    let answer = here.post("/api/v1/logout", serde_json::Value::Null).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(here.get("/api/v1/me").await.code(), "unauthenticated");
    assert_eq!(there.get("/api/v1/me").await.status, StatusCode::OK);
}
