//! Uploads and adapters that end: deleted, cancelled, abandoned.

use crate::push::{Ahead, Plant, small_adapter};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::Connection;

#[tokio::test]
async fn deleting_an_adapter_takes_it_from_the_nodes_and_erases_bytes_that_nothing_else_needs() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("deleter").await;
    let files = small_adapter(1);
    let gone = client.push("gone", &files, Ahead::Yes).await.unwrap();
    let twin = client.push("twin", &files, Ahead::Yes).await.unwrap();
    assert_eq!(gone["digest"], twin["digest"]);
    plant.settle().await;

    assert_eq!(client.delete("/api/v1/adapters/gone").await.status, StatusCode::NO_CONTENT);
    assert_eq!(client.get("/api/v1/adapters/gone").await.status, StatusCode::NOT_FOUND);
    assert_eq!(plant.resource(&gone).await, None);
    plant.settle().await;
    assert_eq!(plant.objects().len(), 3, "the twin has the same content");

    client.delete("/api/v1/adapters/twin").await;
    plant.settle().await;
    assert_eq!(plant.objects(), Vec::<String>::new());
    let again = client.push("gone", &files, Ahead::Yes).await.unwrap();
    assert_eq!(again["version"], 1, "the name is free again");
}

#[tokio::test]
async fn a_cancelled_upload_leaves_nothing_behind() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("canceller").await;
    let files = small_adapter(1);
    let started = client.start_upload("a", &files, Ahead::Yes).await.body;
    client.send_all_parts(&started, &files).await;
    let upload = format!("/api/v1/uploads/{}", started["upload_id"].as_str().unwrap());
    assert_eq!(client.delete(&upload).await.status, StatusCode::NO_CONTENT);
    assert_eq!(client.delete(&upload).await.status, StatusCode::NO_CONTENT, "twice is fine");
    let late = client.post(&format!("{upload}/complete"), json!({})).await;
    assert_eq!((late.status, late.code()), (StatusCode::CONFLICT, "upload_closed"));
    assert_eq!(client.get("/api/v1/adapters").await.body["adapters"], json!([]));
    plant.settle().await;
    assert_eq!(plant.objects(), Vec::<String>::new());
}

#[tokio::test]
async fn an_abandoned_upload_fails_with_the_reason_and_is_swept() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("abandoner").await;
    let files = small_adapter(1);
    let started = client.start_upload("a", &files, Ahead::Yes).await.body;
    client.send_all_parts(&started, &files).await;
    plant.execute("update upload set expires_at = now() - interval '1 second'", &[]).await;
    plant.execute("update job set run_at = now() where kind = 'expire_upload'", &[]).await;
    plant.settle().await;
    let version = client.wait_for_version("a", 1).await;
    assert_eq!(version["state"], "failed");
    assert_eq!(version["error"]["code"], "upload_expired");
    assert_eq!(plant.objects(), Vec::<String>::new());
}

/// A deletion holds the version's row and wants the upload's; whoever completes or cancels must not hold
/// the upload's and want the version's.
#[tokio::test]
async fn completing_and_cancelling_lock_rows_in_the_order_in_which_a_deletion_does() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("pirate-co").await;
    let files = small_adapter(1);
    for path in ["complete", ""] {
        let started = client.start_upload("pirate", &files, Ahead::No).await.body;
        client.send_all_parts(&started, &files).await;
        let upload = started["upload_id"].as_str().unwrap();
        let mut owner = plant.app.owner().await;
        let mut deletion = owner.begin().await.unwrap();
        sqlx::query("set local lock_timeout = '3s'").execute(&mut *deletion).await.unwrap();
        sqlx::query("select from adapter_version where state = 'uploading' for update")
            .execute(&mut *deletion)
            .await
            .unwrap();
        let end = async {
            match path {
                "" => client.delete(&format!("/api/v1/uploads/{upload}")).await,
                _ => client.post(&format!("/api/v1/uploads/{upload}/{path}"), json!({})).await,
            }
        };
        let delete = async {
            plant.until_somebody_waits_for_a_lock().await;
            let locked = sqlx::query("select from upload where state = 'open' for update")
                .execute(&mut *deletion)
                .await;
            locked.expect("nobody else holds the upload");
            deletion.rollback().await.unwrap();
        };
        let (answer, ()) = futures::join!(end, delete);
        assert!(answer.status.is_success(), "{answer:?}");
        plant.settle().await;
    }
}
