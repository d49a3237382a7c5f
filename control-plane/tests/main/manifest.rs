//! What is published to the nodes.

use crate::support::{TestApp, connect};
use lorikeet_contract::link::{KeyResource, ResourceKind};
use lorikeet_contract::{KeyId, TenantId};
use lorikeet_control_plane::db::Acting;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A reader that has seen revision n must never later meet a change with a revision of n or less:
/// a node that resumes from n would miss it. (A sequence would break this: it is drawn before the
/// commit that makes the change visible.)
#[tokio::test(flavor = "multi_thread")]
async fn a_revision_becomes_visible_after_every_smaller_one_under_twenty_writers() {
    let app = TestApp::start().await;
    let done = Arc::new(AtomicBool::new(false));
    let mut reader = app.owner().await;
    let watching = tokio::spawn({
        let done = done.clone();
        async move {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                // Each resource is published once: a smaller revision still to come shows as a gap.
                let (newest, changes): (i64, i64) = sqlx::query_as(
                    "select coalesce(max(revision), 0), count(*) from manifest_change",
                )
                .fetch_one(&mut reader)
                .await
                .unwrap();
                assert_eq!(newest, changes);
                looks += 1;
            }
            looks
        }
    });
    // A tenant each, or the lock on a common tenant would put the writers in a row by itself.
    let writers = (0..20).map(|_| {
        let (pool, database) = (app.state.db.app.clone(), app.database.clone());
        tokio::spawn(async move {
            let tenant = TenantId::new();
            sqlx::query("insert into tenant (id, name) values ($1, 'writer')")
                .bind(tenant.as_uuid())
                .execute(&mut connect("lk_owner", &database).await)
                .await
                .unwrap();
            for _ in 0..10 {
                let tx = pool.write(&Acting::system(tenant)).await.unwrap();
                let mut tx = tx.audit("test", "x", json!({})).await.unwrap();
                let resource = KeyResource::default();
                tx.publish(ResourceKind::Key, KeyId::new(), &resource).await.unwrap();
                tx.commit().await.unwrap();
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(watching.await.unwrap() > 10, "the reader hardly looked");
    let revision: i64 = sqlx::query_scalar("select revision from manifest_counter")
        .fetch_one(&mut app.owner().await)
        .await
        .unwrap();
    assert_eq!(revision, 200);
}

#[tokio::test]
async fn a_transaction_that_fails_publishes_nothing() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let acting = Acting::system(ann.tenant.parse().unwrap());
    let tx = app.state.db.app.write(&acting).await.unwrap();
    let mut tx = tx.audit("test", "x", json!({})).await.unwrap();
    tx.publish_tombstone(ResourceKind::Key, "key_x").await.unwrap();
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
    let acting = Acting::system(eve.tenant.parse().unwrap());
    let tx = app.state.db.app.write(&acting).await.unwrap();
    let mut tx = tx.audit("test", "x", json!({})).await.unwrap();
    let kind = ResourceKind::Tenant;
    let error = tx.publish_tombstone(kind, &ann.tenant).await.unwrap_err().to_string();
    assert!(error.contains("belongs to another tenant"), "{error}");
    drop(tx);

    let key = ann.create_key(&["read"]).await["id"].as_str().unwrap().parse().unwrap();
    let tx = app.state.db.app.write(&acting).await.unwrap();
    let mut tx = tx.audit("test", "x", json!({})).await.unwrap();
    let error = tx.revoke_key(key).await.unwrap_err().to_string();
    assert!(error.contains("belongs to another tenant"), "{error}");
}
