//! Uploads that are refused: by what they hold, by the tenant's quotas, by who asks, by a store that is away.

use crate::push::{Ahead, Plant, files_in, large_adapter, put_object, small_adapter};
use crate::support::TestApp;
use lorikeet_contract::adapter::files::WEIGHTS_FILE;
use reqwest::StatusCode;
use serde_json::json;

#[tokio::test]
async fn the_store_refuses_a_part_of_another_length_than_signed() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("longer").await;
    let files = small_adapter(2);
    let started = client.start_upload("a", &files, Ahead::No).await.body;
    let part = &started["files"][0]["parts"][0];
    let planned = part["bytes"].as_u64().unwrap() as usize;
    let put = put_object(part, vec![b'x'; planned + 1]).await;
    assert_eq!(put.status(), StatusCode::FORBIDDEN);
    let report = json!({ "file": started["files"][0]["name"], "number": 1, "etag": "x", "bytes": planned + 1 });
    let path = format!("/api/v1/uploads/{}/parts", started["upload_id"].as_str().unwrap());
    let reported = client.put(&path, json!({ "parts": [report] })).await;
    assert_eq!(reported.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_mistake_that_the_header_shows_is_refused_before_the_bulk() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("mistaken").await;
    let files = files_in(&lorikeet_kit::bad_path("wrong_hidden"));
    let refused = client.start_upload("a", &files, Ahead::Yes).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.code(), "shape_mismatch");
    let listed = client.get("/api/v1/adapters").await.body;
    assert_eq!(listed["adapters"], json!([]), "nothing was made");
    let named = client.start_upload("Bad Name", &files, Ahead::No).await;
    assert_eq!(named.body["error"]["param"], "name");
}

#[tokio::test]
async fn quotas_hold_on_adapters_bytes_and_open_uploads() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("full").await;
    client.push("a", &small_adapter(1), Ahead::Yes).await.unwrap();
    plant.execute("update tenant set max_adapters = 1", &[]).await;
    let refused = client.start_upload("b", &small_adapter(2), Ahead::No).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "quota_exceeded"));
    let next_version = client.start_upload("a", &small_adapter(2), Ahead::No).await;
    assert_eq!(next_version.status, StatusCode::CREATED, "a version is no new adapter");

    plant.execute("update tenant set max_adapters = 50, max_adapter_bytes = 1000000", &[]).await;
    let refused = client.start_upload("b", &large_adapter(), Ahead::No).await;
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("1000000 bytes"));
    plant.execute("update tenant set max_adapter_bytes = 1000000000", &[]).await;
    for n in 0..19 {
        let started = client.start_upload(&format!("open-{n}"), &small_adapter(2), Ahead::No).await;
        assert_eq!(started.status, StatusCode::CREATED);
    }
    let refused = client.start_upload("one-more", &small_adapter(2), Ahead::No).await;
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("unfinished uploads"));
}

#[tokio::test]
async fn another_tenant_finds_neither_the_upload_nor_the_adapter() {
    let plant = Plant::start().await;
    let (owner, other) = (plant.app.sign_up("mine").await, plant.app.sign_up("theirs").await);
    let files = small_adapter(1);
    owner.push("shared-name", &files, Ahead::Yes).await.unwrap();
    let open = owner.start_upload("open", &files, Ahead::No).await.body;
    let upload = format!("/api/v1/uploads/{}", open["upload_id"].as_str().unwrap());
    let absent = other.get("/api/v1/adapters/never-was").await;
    for answer in [
        other.get("/api/v1/adapters/shared-name").await,
        other.get("/api/v1/adapters/shared-name/versions/1").await,
        other.delete("/api/v1/adapters/shared-name").await,
        other.get(&upload).await,
        other.delete(&upload).await,
        other.post(&format!("{upload}/complete"), json!({})).await,
        other
            .put(
                &format!("{upload}/parts"),
                json!({ "parts": [{"file": WEIGHTS_FILE, "number": 1, "etag": "x", "bytes": 1}] }),
            )
            .await,
    ] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.body, absent.body);
    }

    // The same bytes under the same name: two adapters that share nothing.
    other.push("shared-name", &files, Ahead::Yes).await.unwrap();
    assert_eq!(owner.delete("/api/v1/adapters/shared-name").await.status, StatusCode::NO_CONTENT);
    plant.settle().await;
    let packed: Vec<_> = plant.objects().into_iter().filter(|k| k.ends_with(".lka")).collect();
    assert_eq!(packed.len(), 1, "{packed:?}");
    assert_eq!(other.get("/api/v1/adapters/shared-name").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_object_store_that_is_away_is_said_to_be_and_nothing_is_begun() {
    let app = TestApp::start_with(&[("LORIKEET_S3_ENDPOINT", "http://127.0.0.1:1")]).await;
    let client = app.sign_up("offline").await;
    let refused = client.start_upload("a", &small_adapter(1), Ahead::Yes).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.code(), "object_store_unavailable");
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(client.get("/api/v1/adapters").await.body["adapters"], json!([]));
}
