//! Starting and stopping, migrations, operators.

use crate::support::{PASSWORD, TestApp, config, connect, database, options};
use lorikeet_control_plane::{create_operator, migrate, run};
use lorikeet_kit::ReservedPort;
use reqwest::StatusCode;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn it_serves_until_it_is_told_to_stop() {
    let port = ReservedPort::new().unwrap();
    let address = format!("127.0.0.1:{}", port.number());
    let vars = [("LORIKEET_LISTEN", address.as_str()), ("LORIKEET_METRICS_LISTEN", "off")];
    let config = config(&database().await, &vars);
    let stop = CancellationToken::new();
    let serving = tokio::spawn(run(config, stop.clone()));
    let url = format!("http://{address}/api/v1/service");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = loop {
        match client.get(&url).send().await {
            Ok(answer) => break answer,
            Err(_) => assert!(!serving.is_finished(), "{:?}", serving.await),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(answer.status(), StatusCode::OK);
    let service: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(service["api_base_url"], "http://127.0.0.1:7710/v1");
    assert_eq!(service["base_model"], serde_json::Value::Null);
    stop.cancel();
    serving.await.unwrap().unwrap();
    TcpListener::bind(&address).await.expect("the port is free again");
}

#[tokio::test]
async fn the_service_names_the_base_model_seen_last() {
    let app = TestApp::start().await;
    sqlx::query(
        "insert into base_model (weights_digest, id, spec, last_seen_at) values
           (decode(repeat('01', 32), 'hex'), 'old', '{}', now() - interval '1 day'),
           (decode(repeat('02', 32), 'hex'), 'new', '{}', now())",
    )
    .execute(&mut app.owner().await)
    .await
    .unwrap();
    assert_eq!(app.anonymous().get("/api/v1/service").await.body["base_model"], "new");
}

#[tokio::test]
async fn connections_that_postgres_has_cut_are_replaced() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let cut: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where datname = $1 and usename = 'lk_app'",
    )
    .bind(&app.database)
    .fetch_one(&mut connect("postgres", &app.database).await)
    .await
    .unwrap();
    assert!(cut > 0);
    assert_eq!(ann.get("/api/v1/keys").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_setting_that_changes_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let vars = [("LORIKEET_LISTEN", address.as_str()), ("LORIKEET_METRICS_LISTEN", "off")];
    let config = config(&database().await, &vars);
    let error = format!("{:#}", run(config, CancellationToken::new()).await.unwrap_err());
    assert!(error.contains(&address) && error.contains("LORIKEET_LISTEN"), "{error}");
}

#[tokio::test]
async fn a_database_that_is_behind_is_not_served() {
    let name = database().await;
    let mut owner = connect("lk_owner", &name).await;
    sqlx::query("delete from _sqlx_migrations").execute(&mut owner).await.unwrap();
    let error = run(config(&name, &[]), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("run `lorikeet migrate`"), "{error}");
    sqlx::query("drop table _sqlx_migrations").execute(&mut owner).await.unwrap();
    let error = run(config(&name, &[]), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("run `lorikeet migrate`"), "{error}");
}

#[tokio::test]
async fn migrating_creates_the_database_and_may_be_repeated_by_the_owner_and_at_once() {
    database().await;
    let admin = options("postgres", "made_by_migrate");
    let (first, second) = tokio::join!(migrate(&admin), migrate(&admin));
    first.unwrap();
    second.unwrap();
    migrate(&options("lk_owner", "made_by_migrate")).await.unwrap();
    let mut conn = connect("lk_app", "made_by_migrate").await;
    let owner: String =
        sqlx::query_scalar("select tableowner::text from pg_tables where tablename = 'tenant'")
            .fetch_one(&mut conn)
            .await
            .unwrap();
    assert_eq!(owner, "lk_owner");
    let error = migrate(&options("lk_app", "made_by_migrate")).await.unwrap_err();
    assert!(format!("{error:#}").contains("administrator"), "{error:#}");
}

#[tokio::test]
async fn an_operator_is_made_once_and_has_the_password_given_last() {
    let app = TestApp::start().await;
    let owner = options("lk_owner", &app.database);
    let email = "ops@example.com";
    let first = create_operator(&owner, email, "the first password").await.unwrap();
    let again = create_operator(&owner, email, PASSWORD).await.unwrap();
    assert_eq!(first, again);
    assert!(create_operator(&owner, email, "short").await.is_err());
    let operator = app.log_in(email).await;
    let me = operator.get("/api/v1/me").await.body;
    assert_eq!(me["user"]["is_operator"], true);
    assert_eq!(me["tenant"], serde_json::Value::Null);
    assert_eq!(operator.get("/api/v1/keys").await.code(), "no_tenant");

    create_operator(&owner, email, PASSWORD).await.unwrap();
    assert_eq!(operator.get("/api/v1/me").await.status, 200, "repeating it changes nothing");

    let mut look = app.state.db.operator(first, "tenants.read", Some("req_1")).await.unwrap();
    sqlx::query("select count(*) from tenant").execute(&mut *look).await.unwrap();
    drop(look);
    let recorded: (String, Option<uuid::Uuid>) =
        sqlx::query_as("select actor, tenant_id from audit where action = 'tenants.read'")
            .fetch_one(&mut app.owner().await)
            .await
            .unwrap();
    assert_eq!(recorded, (format!("user {first}"), None));
}

#[tokio::test]
async fn whoever_took_the_operators_address_before_does_not_become_operator() {
    let app = TestApp::start().await;
    let squatter = app.sign_up("ops").await;
    let owner = options("lk_owner", &app.database);
    create_operator(&owner, "OPS@example.com", "known to the operator").await.unwrap();
    assert_eq!(squatter.get("/api/v1/me").await.code(), "unauthenticated");
}
