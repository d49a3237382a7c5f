//! The dashboard as a browser without scripts sees it.

use crate::support::{Client, PASSWORD, TestApp, options};
use lorikeet_control_plane::auth::create_operator;
use reqwest::{RequestBuilder, Response, StatusCode};

/// Sends what a form on a page would.
async fn submit(client: &Client<'_>, path: &str, fields: &[(&str, &str)]) -> Response {
    let request = client.request(reqwest::Method::POST, path).form(fields);
    as_browser(request).send().await.unwrap()
}

async fn page(client: &Client<'_>, path: &str) -> (StatusCode, String) {
    let answer = as_browser(client.request(reqwest::Method::GET, path)).send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

fn as_browser(request: RequestBuilder) -> RequestBuilder {
    request
        .header("accept", "text/html,application/xhtml+xml")
        .header("sec-fetch-site", "same-origin")
}

#[tokio::test]
async fn a_visitor_signs_up_with_a_form_and_lands_on_the_adapters() {
    let app = TestApp::start().await;
    let visitor = app.anonymous();
    let fields =
        [("tenant_name", "Ann & Co."), ("email", "ann@example.com"), ("password", PASSWORD)];
    let answer = submit(&visitor, "/signup", &fields).await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let request = visitor.request(reqwest::Method::GET, "/adapters").header("cookie", cookie);
    let text = as_browser(request).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("No adapters yet"), "{text}");
    assert!(text.contains("Ann &#38; Co."), "the name is escaped");
}

#[tokio::test]
async fn a_wrong_password_keeps_the_address_and_says_so() {
    let app = TestApp::start().await;
    app.sign_up("ann").await;
    let fields = [("email", "ann@example.com"), ("password", "wrong")];
    let answer = submit(&app.anonymous(), "/login", &fields).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let text = answer.text().await.unwrap();
    assert!(text.contains("The e-mail address or the password is wrong."), "{text}");
    assert!(text.contains("value=\"ann@example.com\""), "{text}");
}

#[tokio::test]
async fn a_key_made_on_the_page_is_shown_once() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let fields =
        [("name", "<laptop>"), ("scopes", "inference"), ("scopes", "read"), ("password", PASSWORD)];
    let answer = submit(&ann, "/keys", &fields).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let text = answer.text().await.unwrap();
    let start = text.find("id=\"new-key-value\">").unwrap() + "id=\"new-key-value\">".len();
    let key = text[start..].split('<').next().unwrap();
    assert_eq!(app.with_key(key).get("/api/v1/me").await.status, StatusCode::OK);
    let (_, list) = page(&ann, "/keys").await;
    assert!(!list.contains(key), "the page shows the key again");
    assert!(list.contains("&#60;laptop&#62;") && list.contains("inference, read"), "{list}");
}

#[tokio::test]
async fn a_key_needs_the_password_and_a_scope() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let wrong = [("name", "x"), ("scopes", "read"), ("password", "wrong")];
    let answer = submit(&ann, "/keys", &wrong).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let answer = submit(&ann, "/keys", &[("name", "x"), ("password", PASSWORD)]).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.text().await.unwrap().contains("A key needs at least one scope."));
}

#[tokio::test]
async fn a_page_without_a_session_leads_to_the_login_and_a_fragment_tells_htmx() {
    let app = TestApp::start().await;
    let visitor = app.anonymous();
    let answer = as_browser(visitor.request(reqwest::Method::GET, "/usage")).send().await.unwrap();
    assert_eq!(answer.headers()["location"], "/login");
    let fragment = visitor.request(reqwest::Method::GET, "/adapters-table");
    let answer = fragment.header("hx-request", "true").send().await.unwrap();
    assert_eq!(answer.headers()["hx-redirect"], "/login");
}

#[tokio::test]
async fn every_page_of_a_tenant_renders_and_an_unknown_one_says_so() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    for (path, has) in [
        ("/adapters", "Upload an adapter"),
        ("/keys", "No keys yet"),
        ("/usage", "<svg class=\"chart\""),
    ] {
        let (status, text) = page(&ann, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        assert!(text.contains(has), "{path}: {text}");
    }
    for path in ["/usage?period=24h", "/usage?period=7d", "/usage?period=30d", "/usage?period=junk"]
    {
        assert_eq!(page(&ann, path).await.0, StatusCode::OK, "{path}");
    }
    let (status, text) = page(&ann, "/adapters/nobody-has-this").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("Nothing here") && text.contains("req_"), "{text}");
    let (status, text) = page(&ann, "/operator/usage").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
}

#[tokio::test]
async fn an_operator_sees_all_tenants_and_every_look_is_audited() {
    let app = TestApp::start().await;
    app.sign_up("ann").await;
    let owner = options("lk_owner", &app.database);
    create_operator(&owner, "op@example.com", PASSWORD).await.unwrap();
    let operator = app.log_in("op@example.com").await;
    for (path, has) in
        [("/operator/usage", "Usage of all tenants"), ("/operator/nodes", "the books agree")]
    {
        let (status, text) = page(&operator, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        assert!(text.contains(has), "{path}: {text}");
    }
    let looks: i64 =
        sqlx::query_scalar("select count(*) from audit where action like 'operator.%'")
            .fetch_one(&mut app.owner().await)
            .await
            .unwrap();
    assert_eq!(looks, 2);
}

#[tokio::test]
async fn static_files_have_their_type_and_nothing_else_is_served() {
    let app = TestApp::start().await;
    let visitor = app.anonymous();
    for (name, kind) in [("app.css", "text/css"), ("vendor/htmx-2.0.11.min.js", "text/javascript")]
    {
        let answer = visitor.get(&format!("/static/{name}")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with(kind));
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }
    for name in ["nothing.css", "../Cargo.toml", "..%2f..%2fCargo.toml"] {
        assert_eq!(visitor.get(&format!("/static/{name}")).await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_revoked_key_says_how_many_nodes_refuse_it() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let key = ann.create_key(&["read"]).await;
    let path = format!("/keys/{}/revoke", key["id"].as_str().unwrap());
    assert_eq!(submit(&ann, &path, &[]).await.status(), StatusCode::SEE_OTHER);
    let (_, text) = page(&ann, "/keys").await;
    assert!(text.contains("refused on 0 of 0 nodes"), "{text}");
}
