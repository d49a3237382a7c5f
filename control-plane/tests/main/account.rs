//! Sign up, log in, log out.

use crate::support::{Answer, PASSWORD, TestApp, send};
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};

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

#[tokio::test]
async fn logging_in_replaces_the_browsers_old_session() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    let again = ann.post("/api/v1/login", body).await;
    assert_eq!(again.status, StatusCode::OK);
    assert_eq!(ann.get("/api/v1/me").await.code(), "unauthenticated", "the old cookie is dead");
}

#[tokio::test]
async fn sessions_begin_and_end_with_an_audit_row() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let again = app.log_in("ann@example.com").await;
    again.post("/api/v1/logout", serde_json::Value::Null).await;
    let actions: Vec<String> = sqlx::query_scalar(
        "select action from audit where tenant_id = $1 and actor like 'user %' order by id",
    )
    .bind(ann.tenant.parse::<lorikeet_contract::TenantId>().unwrap().as_uuid())
    .fetch_all(&mut app.owner().await)
    .await
    .unwrap();
    assert_eq!(actions, ["tenant.create", "session.begin", "session.end"]);
}

#[tokio::test]
async fn an_unknown_address_and_a_wrong_password_get_one_answer_after_the_same_work() {
    let app = TestApp::start().await;
    app.sign_up("ann").await;
    let anonymous = app.anonymous();
    let mut fastest = [Duration::MAX; 2];
    let mut answers = Vec::new();
    for _ in 0..4 {
        for (i, email) in ["ann@example.com", "nobody@example.com"].into_iter().enumerate() {
            let body = json!({ "email": email, "password": "not the password" });
            let started = Instant::now();
            let answer = anonymous.post("/api/v1/login", body).await;
            fastest[i] = fastest[i].min(started.elapsed());
            answers.push((answer.status, answer.body.to_string()));
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, StatusCode::UNAUTHORIZED);
    let [known, unknown] = fastest;
    assert!(unknown > known / 3 && known > unknown / 3, "{known:?} and {unknown:?}");
}

/// Logs in through a proxy that says where the visitor is.
async fn log_in_from(app: &TestApp, address: &str, email: &str, password: &str) -> Answer {
    let anonymous = app.anonymous();
    let request = anonymous.request(Method::POST, "/api/v1/login");
    let request = request.header("x-forwarded-for", address);
    send(request.json(&json!({ "email": email, "password": password }))).await
}

#[tokio::test]
async fn after_ten_failures_an_account_is_closed_to_that_address_and_open_to_its_owner() {
    let app = TestApp::start_with(&[("LORIKEET_TRUSTED_PROXIES", "1")]).await;
    app.sign_up("ann").await;
    app.sign_up("ben").await;
    let (stranger, owner) = ("203.0.113.7", "198.51.100.4");
    // At once: a limit that is checked before it is counted would let all of them through.
    let attempts =
        (0..20).map(|_| log_in_from(&app, stranger, "Ann@example.com", "wrong password"));
    let answers = futures::future::join_all(attempts).await;
    let tried = answers.iter().filter(|a| a.code() == "wrong_credentials").count();
    let refused = answers.iter().filter(|a| a.code() == "too_many_attempts").count();
    assert_eq!((tried, refused), (10, 10));
    let right = log_in_from(&app, stranger, "ann@example.com", PASSWORD).await;
    assert_eq!(right.status, StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = right.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=900).contains(&wait), "{wait}");
    for (address, email) in [(owner, "ann@example.com"), (stranger, "ben@example.com")] {
        let answer = log_in_from(&app, address, email, PASSWORD).await;
        assert_eq!(answer.status, StatusCode::OK, "{address} {email}");
    }

    sqlx::query("update login_attempt set window_start = window_start - interval '15 minutes'")
        .execute(&mut app.owner().await)
        .await
        .unwrap();
    let later = log_in_from(&app, stranger, "ann@example.com", PASSWORD).await;
    assert_eq!(later.status, StatusCode::OK);
}

#[tokio::test]
async fn guessing_from_many_addresses_or_at_many_accounts_is_bounded_too() {
    let app = TestApp::start_with(&[("LORIKEET_TRUSTED_PROXIES", "1")]).await;
    app.sign_up("ann").await;
    let mut owner = app.owner().await;
    // All but the last of what either bound allows, without waiting for so many hashes.
    for (address, email) in [("203.0.113.7", "ann@example.com"), ("203.0.113.8", "a@b.example")] {
        log_in_from(&app, address, email, "wrong password").await;
    }
    let used = "update login_attempt set failures = $1 where failures = 1";
    sqlx::query(used).bind(99).execute(&mut owner).await.unwrap();
    let code = async |address: &str, email: &str| {
        log_in_from(&app, address, email, "wrong password").await.code().to_owned()
    };
    // The 100th from an address is the last, whatever the account.
    assert_eq!(code("203.0.113.8", "c@d.example").await, "wrong_credentials");
    assert_eq!(code("203.0.113.8", "e@f.example").await, "too_many_attempts");
    // An account allows 200 from all addresses together.
    sqlx::query("update login_attempt set failures = 199 where failures = 99")
        .execute(&mut owner)
        .await
        .unwrap();
    assert_eq!(code("203.0.113.20", "ann@example.com").await, "wrong_credentials");
    assert_eq!(code("203.0.113.21", "ann@example.com").await, "too_many_attempts");
}

#[tokio::test]
async fn a_success_takes_the_accounts_failures_back() {
    let app = TestApp::start().await;
    app.sign_up("ann").await;
    let anonymous = app.anonymous();
    for _ in 0..3 {
        for _ in 0..6 {
            let body = json!({ "email": "ann@example.com", "password": "wrong password" });
            assert_eq!(anonymous.post("/api/v1/login", body).await.code(), "wrong_credentials");
        }
        app.log_in("ann@example.com").await;
    }
}

#[tokio::test]
async fn the_session_cookie_fits_the_public_url() {
    let cookie = async |public_url: &str| {
        let app = TestApp::start_with(&[("LORIKEET_PUBLIC_URL", public_url)]).await;
        let body = json!({ "email": "a@b.example", "password": PASSWORD, "tenant_name": "x" });
        let answer = app.anonymous().post("/api/v1/signup", body).await;
        answer.headers["set-cookie"].to_str().unwrap().to_owned()
    };
    let https = cookie("https://lorikeet.example").await;
    assert!(https.starts_with("__Host-lorikeet="), "{https}");
    for part in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/", "Max-Age=1209600"] {
        assert!(https.contains(part), "{https}");
    }
    assert!(!https.contains("Domain"), "{https}");
    let http = cookie("http://127.0.0.1:7700").await;
    assert!(http.starts_with("lorikeet_session="), "{http}");
    assert!(http.contains("HttpOnly") && !http.contains("Secure"), "{http}");
}

#[tokio::test]
async fn sessions_end_with_their_life_and_when_long_unused() {
    let app = TestApp::start().await;
    let mut owner = app.owner().await;
    for change in ["expires_at = now()", "last_seen_at = now() - interval '73 hours'"] {
        let ann = match change {
            "expires_at = now()" => app.sign_up("ann").await,
            _ => app.log_in("ann@example.com").await,
        };
        assert_eq!(ann.get("/api/v1/me").await.status, StatusCode::OK);
        let update = sqlx::AssertSqlSafe(format!("update session set {change}"));
        sqlx::raw_sql(update).execute(&mut owner).await.unwrap();
        assert_eq!(ann.get("/api/v1/me").await.code(), "unauthenticated", "{change}");
    }
    sqlx::query("select auth_sweep()").execute(app.state.db.app.untenanted()).await.unwrap();
    let left: i64 =
        sqlx::query_scalar("select count(*) from session").fetch_one(&mut owner).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_session_in_use_is_seen_again() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let mut owner = app.owner().await;
    sqlx::query("update session set last_seen_at = now() - interval '2 days'")
        .execute(&mut owner)
        .await
        .unwrap();
    ann.get("/api/v1/me").await;
    let recent: bool =
        sqlx::query_scalar("select last_seen_at > now() - interval '1 minute' from session")
            .fetch_one(&mut owner)
            .await
            .unwrap();
    assert!(recent);
}

#[tokio::test]
async fn signing_up_names_the_field_that_is_wrong() {
    let app = TestApp::start().await;
    for (email, password, tenant_name, param) in [
        ("nobody", PASSWORD, "x", "email"),
        ("a@b.example", "short", "x", "password"),
        ("long@b.example", "LONG@b.example", "x", "password"),
        ("a@b.example", PASSWORD, "  ", "tenant_name"),
    ] {
        let body = json!({ "email": email, "password": password, "tenant_name": tenant_name });
        let refused = app.anonymous().post("/api/v1/signup", body).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused.body["error"]["param"], param);
    }
}

#[tokio::test]
async fn a_text_that_cannot_be_stored_is_the_callers_mistake() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let log_in = json!({ "email": "a\0@b", "password": PASSWORD });
    let answers = [
        app.anonymous().post("/api/v1/login", log_in).await,
        ann.post("/api/v1/keys", json!({ "name": "a\0b", "scopes": ["read"] })).await,
        ann.get("/api/v1/adapters/a%00b").await,
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "malformed"));
    }
}

#[tokio::test]
async fn nothing_secret_is_stored_in_clear() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let created = ann.create_key(&["read"]).await;
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    let answer = app.anonymous().post("/api/v1/login", body).await;
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    let token = cookie.split(['=', ';']).nth(1).unwrap().to_owned();
    let dump: String = sqlx::query_scalar(
        "select string_agg(t::text, '') from (
           select to_jsonb(u) as t from app_user u union all select to_jsonb(s) from session s
           union all select to_jsonb(k) from api_key k union all select to_jsonb(a) from audit a
           union all select to_jsonb(l) from login_attempt l) as all_rows",
    )
    .fetch_one(&mut app.owner().await)
    .await
    .unwrap();
    assert!(dump.contains("$argon2id$") && dump.contains("key.create"), "{dump}");
    for secret in [PASSWORD, &token, created["key"].as_str().unwrap()] {
        assert!(!dump.contains(secret));
    }
}
