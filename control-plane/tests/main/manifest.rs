//! What is published to the nodes.

use crate::support::TestApp;
use reqwest::StatusCode;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A reader that has seen revision n must never later meet a change with a revision of n or less:
/// a node that resumes from n would miss it. (A sequence would break this: it is drawn before the
/// commit that makes the change visible.)
#[tokio::test(flavor = "multi_thread")]
async fn a_revision_becomes_visible_after_every_smaller_one_under_twenty_writers() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let manager = ann.create_key(&["manage"]).await;
    let manager = app.with_key(manager["key"].as_str().unwrap());
    sqlx::query("update tenant set max_keys = 1000").execute(&mut app.owner().await).await.unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let mut reader = app.owner().await;
    let watching = tokio::spawn({
        let done = done.clone();
        async move {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                // Each resource is published once, so a gap below the newest shows in the count.
                let (revision, changes): (i64, i64) = sqlx::query_as(
                    "select (select revision from manifest_counter), count(*) from manifest_change",
                )
                .fetch_one(&mut reader)
                .await
                .unwrap();
                assert_eq!(revision, changes);
                looks += 1;
            }
            looks
        }
    });
    let body = json!({ "name": "x", "scopes": ["read"] });
    let writers = (0..20).map(async |_| {
        for _ in 0..5 {
            let answer = manager.post("/api/v1/keys", body.clone()).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        }
    });
    futures::future::join_all(writers).await;
    done.store(true, Ordering::Relaxed);
    assert!(watching.await.unwrap() > 10, "the reader hardly looked");
    let revision: i64 = sqlx::query_scalar("select revision from manifest_counter")
        .fetch_one(&mut app.owner().await)
        .await
        .unwrap();
    assert_eq!(revision, 102, "one tenant and 101 keys");
}

#[tokio::test]
async fn a_transaction_that_fails_publishes_nothing() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let acting = lorikeet_control_plane::db::Acting::system(ann.tenant.parse().unwrap());
    let tx = app.state.db.app.write(&acting).await.unwrap();
    let mut tx = tx.audit("test", "x", json!({})).await.unwrap();
    tx.publish_tombstone(lorikeet_contract::link::ResourceKind::Key, "key_x").await.unwrap();
    drop(tx);
    let (revision, audits): (i64, i64) = sqlx::query_as(
        "select (select revision from manifest_counter),
                (select count(*) from audit where action = 'test')",
    )
    .fetch_one(&mut app.owner().await)
    .await
    .unwrap();
    assert_eq!((revision, audits), (1, 0));
}

#[tokio::test]
async fn a_tenant_can_neither_overwrite_nor_revoke_what_another_has_published() {
    let app = TestApp::start().await;
    let (ann, eve) = (app.sign_up("ann").await, app.sign_up("eve").await);
    let acting = lorikeet_control_plane::db::Acting::system(eve.tenant.parse().unwrap());
    let tx = app.state.db.app.write(&acting).await.unwrap();
    let mut tx = tx.audit("test", "x", json!({})).await.unwrap();
    let kind = lorikeet_contract::link::ResourceKind::Tenant;
    let error = tx.publish_tombstone(kind, &ann.tenant).await.unwrap_err().to_string();
    assert!(error.contains("belongs to another tenant"), "{error}");
    drop(tx);

    let key = ann.create_key(&["read"]).await["id"].as_str().unwrap().parse().unwrap();
    let tx = app.state.db.app.write(&acting).await.unwrap();
    let mut tx = tx.audit("test", "x", json!({})).await.unwrap();
    let error = tx.revoke_key(key).await.unwrap_err().to_string();
    assert!(error.contains("belongs to another tenant"), "{error}");
}
