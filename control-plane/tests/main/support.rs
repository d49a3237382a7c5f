//! An application per test: its own database, cloned from a migrated template, and its own server.

use lorikeet_control_plane::access::Route;
use lorikeet_control_plane::config::Config;
use lorikeet_control_plane::db::Db;
use lorikeet_control_plane::{AppState, app, migrate};
use lorikeet_kit::postgres;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::TcpListener;
use tokio::sync::OnceCell;

const TEMPLATE: &str = "lorikeet_template";
pub const PASSWORD: &str = "a long enough password";

/// A fresh, migrated database and the name of it.
pub async fn database() -> String {
    static READY: OnceCell<()> = OnceCell::const_new();
    static NEXT: AtomicU32 = AtomicU32::new(1);
    READY.get_or_init(|| async { migrate(&options("postgres", TEMPLATE)).await.unwrap() }).await;
    let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut admin = connect("postgres", "postgres").await;
    let create = format!("create database {name} template {TEMPLATE} owner lk_owner");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
    name
}

pub fn options(user: &str, database: &str) -> PgConnectOptions {
    postgres::shared().url(user, database).parse().unwrap()
}

pub async fn connect(user: &str, database: &str) -> PgConnection {
    options(user, database).connect().await.unwrap()
}

pub fn config(database: &str, changes: &[(&str, &str)]) -> Config {
    let url = postgres::shared().url("lk_app", database);
    let vars = [
        ("LORIKEET_DATABASE_URL", url.as_str()),
        ("LORIKEET_S3_ENDPOINT", "http://127.0.0.1:7720"),
        ("LORIKEET_S3_ACCESS_KEY", "access"),
        ("LORIKEET_S3_SECRET_KEY", "secret"),
        ("LORIKEET_GRPC_LISTEN", "127.0.0.1:0"),
        (
            "LORIKEET_NODE_SIGNING_KEY",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/node-signing-key.pem"),
        ),
    ];
    Config::from_vars(|name| {
        let named = |(n, v): &(&str, &str)| (*n == name).then(|| (*v).to_owned());
        changes.iter().find_map(named).or_else(|| vars.iter().find_map(named))
    })
    .unwrap()
}

pub struct TestApp {
    pub database: String,
    pub state: AppState,
    pub routes: Vec<Route>,
    address: SocketAddr,
}

impl TestApp {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With changes to the configuration's variables.
    pub async fn start_with(changes: &[(&str, &str)]) -> Self {
        let database = database().await;
        let config = config(&database, changes);
        let state = AppState::new(config.clone(), Db::connect(&config.database).await.unwrap());
        let app = app(&state);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = app.router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        Self { database, state, routes: app.routes, address }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sees every tenant's rows: for arranging and for looking behind the scenes.
    pub async fn owner(&self) -> PgConnection {
        connect("lk_owner", &self.database).await
    }

    pub fn anonymous(&self) -> Client<'_> {
        Client {
            app: self,
            http: http(HeaderMap::new()),
            tenant: String::new(),
            cookie: String::new(),
        }
    }

    /// A new account with a tenant, logged in.
    pub async fn sign_up(&self, name: &str) -> Client<'_> {
        let body = json!({
            "email": format!("{name}@example.com"), "password": PASSWORD, "tenant_name": name,
        });
        self.session(self.anonymous().post("/api/v1/signup", body).await)
    }

    pub async fn log_in(&self, email: &str) -> Client<'_> {
        let body = json!({ "email": email, "password": PASSWORD });
        self.session(self.anonymous().post("/api/v1/login", body).await)
    }

    fn session(&self, answer: Answer) -> Client<'_> {
        assert!(answer.status.is_success(), "{answer:?}");
        let cookie = answer.headers["set-cookie"].to_str().unwrap();
        let cookie = cookie.split(';').next().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_str(cookie).unwrap());
        headers
            .insert("x-csrf-token", answer.body["csrf_token"].as_str().unwrap().parse().unwrap());
        let tenant = answer.body["tenant"]["id"].as_str().unwrap_or_default().to_owned();
        Client { app: self, http: http(headers), tenant, cookie: cookie.to_owned() }
    }

    pub fn with_key(&self, key: &str) -> Client<'_> {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {key}").parse().unwrap());
        Client { app: self, http: http(headers), tenant: String::new(), cookie: String::new() }
    }
}

fn http(headers: HeaderMap) -> reqwest::Client {
    reqwest::Client::builder()
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .unwrap()
}

/// Someone who calls the application.
pub struct Client<'a> {
    pub app: &'a TestApp,
    pub http: reqwest::Client,
    /// `ten_...` of a session.
    pub tenant: String,
    /// `name=value` of a session.
    pub cookie: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Null when the body is not JSON.
    pub body: Value,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

impl Client<'_> {
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.app.url(path))
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    /// Makes a key: the answer's body has `id` and `key`.
    pub async fn create_key(&self, scopes: &[&str]) -> Value {
        let answer = self.post("/api/v1/keys", json!({ "name": "test", "scopes": scopes })).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.body
    }
}

/// That an error names its request is looked at here, and left out: equal answers are equal.
pub async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.bytes().await.unwrap();
    let mut body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    if !status.is_success()
        && let Some(error) = body.get_mut("error").and_then(Value::as_object_mut)
    {
        let named = error.remove("request_id");
        assert_eq!(named, Some(headers["x-request-id"].to_str().unwrap().into()));
    }
    Answer { status, headers, body }
}
