//! Adapters that their owner switches off and on.

use crate::push::{Ahead, Plant, small_adapter};
use crate::support::{Answer, Client, TestApp};
use lorikeet_contract::TenantId;
use lorikeet_contract::adapter::files::WEIGHTS_FILE;
use lorikeet_contract::adapter::testing::smollm2_135m;
use lorikeet_contract::link::{AdapterResource, AdapterState, ResourceKind};
use prost::Message;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection;

/// The adapter's versions as nodes know them, oldest first.
async fn published(app: &TestApp) -> Vec<AdapterResource> {
    let payloads: Vec<Vec<u8>> = sqlx::query_scalar(
        "select payload from manifest_change where kind = $1 and payload is not null",
    )
    .bind(ResourceKind::Adapter as i32)
    .fetch_all(&mut app.owner().await)
    .await
    .unwrap();
    let mut versions: Vec<_> =
        payloads.iter().map(|bytes| AdapterResource::decode(bytes.as_slice()).unwrap()).collect();
    versions.sort_by_key(|resource| resource.version);
    versions
}

async fn switch(client: &Client<'_>, action: &str) -> Answer {
    client.post(&format!("/api/v1/adapters/pirate/{action}"), json!({})).await
}

#[tokio::test]
async fn a_disabled_adapter_is_refused_in_every_version_also_those_that_come_until_it_is_enabled() {
    let plant = Plant::start().await;
    let ann = plant.app.sign_up("ann").await;
    ann.push("pirate", &small_adapter(1), Ahead::Yes).await.unwrap();
    plant.settle().await;
    plant.execute("update adapter_version set state = 'ready'", &[]).await;
    let served = published(&plant.app).await;
    assert_eq!(served[0].state(), AdapterState::Servable);

    for _ in 0..2 {
        assert_eq!(switch(&ann, "disable").await.status, StatusCode::NO_CONTENT);
    }
    let off = AdapterState::Disabled.into();
    let disabled = AdapterResource { state: off, ..served[0].clone() };
    assert_eq!(published(&plant.app).await, [disabled]);
    let shown = ann.get("/api/v1/adapters/pirate").await.body;
    assert_eq!((&shown["disabled"], &shown["serving_version"]), (&json!(true), &Value::Null));

    ann.push("pirate", &small_adapter(2), Ahead::Yes).await.unwrap();
    plant.settle().await;
    let both = published(&plant.app).await;
    assert_eq!(both.len(), 2);
    assert!(both.iter().all(|version| version.state == off));

    assert_eq!(switch(&ann, "enable").await.status, StatusCode::NO_CONTENT);
    let again = published(&plant.app).await;
    assert_eq!(again[0], served[0]);
    assert_eq!(again[1].state(), AdapterState::Servable);
    let shown = ann.get("/api/v1/adapters/pirate").await.body;
    assert_eq!((&shown["disabled"], &shown["serving_version"]), (&json!(false), &json!(1)));

    let actions: Vec<String> = sqlx::query_scalar(
        "select action from audit where tenant_id = $1 and action like 'adapter.%able' order by at",
    )
    .bind(ann.tenant.parse::<TenantId>().unwrap().as_uuid())
    .fetch_all(&mut plant.app.owner().await)
    .await
    .unwrap();
    assert_eq!(actions, ["adapter.disable", "adapter.disable", "adapter.enable"]);
}

#[tokio::test]
async fn a_version_that_is_being_checked_is_refused_as_disabled_and_then_as_not_ready_again() {
    let plant = Plant::without_node().await;
    let ann = plant.app.sign_up("ann").await;
    let files = small_adapter(1);
    let started = ann.start_upload("pirate", &files, Ahead::No).await;
    ann.send_all_parts(&started.body, &files).await;
    assert_eq!(switch(&ann, "disable").await.status, StatusCode::NO_CONTENT);
    assert!(published(&plant.app).await.is_empty(), "nodes have not heard of it");

    let upload = started.body["upload_id"].as_str().unwrap();
    let done = ann.post(&format!("/api/v1/uploads/{upload}/complete"), json!({})).await;
    assert_eq!(done.status, StatusCode::ACCEPTED, "{done:?}");
    assert_eq!(published(&plant.app).await[0].state(), AdapterState::Disabled);
    switch(&ann, "enable").await;
    assert_eq!(published(&plant.app).await[0].state(), AdapterState::Pending);
}

/// Whoever switches an adapter holds its row, has read which versions nodes know, and is about to tell
/// them: one that failed and was taken back in between would come again and stay.
#[tokio::test]
async fn a_version_cannot_fail_between_the_look_and_the_word_of_whoever_switches_its_adapter() {
    let plant = Plant::without_node().await;
    let ann = plant.app.sign_up("ann").await;
    ann.complete_upload("pirate", &small_adapter(1)).await;
    // The store loses the object; the attempt that finds out is the last.
    let staged = plant.objects().into_iter().find(|k| k.ends_with(WEIGHTS_FILE)).unwrap();
    std::fs::remove_file(plant.object(&staged)).unwrap();
    plant.execute("update job set max_attempts = 1 where kind = 'verify_adapter'", &[]).await;

    let mut owner = plant.app.owner().await;
    let mut switching = owner.begin().await.unwrap();
    sqlx::query("update adapter set disabled_at = now()").execute(&mut *switching).await.unwrap();
    plant.report_base_model(&smollm2_135m()).await;
    plant.until_somebody_waits_for_a_lock().await;
    let version = ann.get("/api/v1/adapters/pirate/versions/1").await.body;
    assert_eq!(version["state"], "verifying");
    switching.commit().await.unwrap();
    assert_eq!(ann.wait_for_version("pirate", 1).await["state"], "failed");
    assert!(published(&plant.app).await.is_empty());
}

#[tokio::test]
async fn nobody_else_can_switch_an_adapter_and_its_page_has_the_buttons() {
    let plant = Plant::start().await;
    let ann = plant.app.sign_up("ann").await;
    ann.push("pirate", &small_adapter(1), Ahead::Yes).await.unwrap();
    let bob = plant.app.sign_up("bob").await;
    assert_eq!(switch(&bob, "disable").await.status, StatusCode::NOT_FOUND);
    assert_eq!(published(&plant.app).await[0].state(), AdapterState::Servable);

    for (shown, button) in [("Disable pirate?", "disable"), ("pirate is disabled", "enable")] {
        let page = ann.request(Method::GET, "/adapters/pirate").send().await.unwrap();
        let page = page.text().await.unwrap();
        assert!(page.contains(shown), "{page}");
        let path = format!("/adapters/pirate/{button}");
        assert!(page.contains(&format!("action=\"{path}\"")), "{page}");
        let pressed = ann.request(Method::POST, &path).form(&[("csrf", "")]).send().await.unwrap();
        assert_eq!(pressed.headers()["location"], "/adapters/pirate");
    }
    assert_eq!(published(&plant.app).await[0].state(), AdapterState::Servable);
}
