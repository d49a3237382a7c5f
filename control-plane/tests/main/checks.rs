//! The checks of complete uploads, as jobs: given up, taken over, done once.

use crate::push::{Ahead, Plant, small_adapter};
use lorikeet_contract::adapter::files::WEIGHTS_FILE;
use lorikeet_contract::adapter::testing::smollm2_135m;
use std::time::Duration;

#[tokio::test]
async fn an_upload_that_cannot_be_checked_ends_in_an_apology_not_in_limbo() {
    let plant = Plant::without_node().await;
    let client = plant.app.sign_up("unlucky").await;
    client.complete_upload("a", &small_adapter(1)).await;
    // The store loses the object; this attempt is the last.
    let staged = plant.objects().into_iter().find(|k| k.ends_with(WEIGHTS_FILE)).unwrap();
    std::fs::remove_file(plant.object(&staged)).unwrap();
    plant.execute("update job set max_attempts = 1 where kind = 'verify_adapter'", &[]).await;
    plant.report_base_model(&smollm2_135m()).await;
    let version = client.wait_for_version("a", 1).await;
    assert_eq!(version["state"], "failed");
    assert_eq!(version["error"]["code"], "check_failed");
}

#[tokio::test]
async fn a_job_that_ends_every_process_that_tries_it_is_given_up() {
    let plant = Plant::without_node().await;
    let client = plant.app.sign_up("fatal").await;
    client.complete_upload("a", &small_adapter(1)).await;
    // As its last attempt leaves it: begun, and never heard of again.
    let died = "update job set attempts = max_attempts, locked_until = now()
                where kind = 'verify_adapter' and finished_at is null";
    assert_eq!(plant.execute(died, &[]).await, 1);
    plant.report_base_model(&smollm2_135m()).await;
    let version = client.wait_for_version("a", 1).await;
    assert_eq!(version["error"]["code"], "check_failed", "{version}");
}

#[tokio::test]
async fn a_dead_workers_job_is_taken_over_when_its_lease_has_run_out() {
    let plant = Plant::without_node().await;
    let client = plant.app.sign_up("takeover").await;
    client.complete_upload("a", &small_adapter(1)).await;
    // As if another process held the lease, of which no more will be heard.
    let held = plant
        .execute(
            "update job set locked_until = now() + interval '3 seconds'
             where kind = 'verify_adapter' and finished_at is null",
            &[],
        )
        .await;
    assert_eq!(held, 1);
    plant.report_base_model(&smollm2_135m()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let waiting = client.get("/api/v1/adapters/a/versions/1").await.body;
    assert_eq!(waiting["state"], "verifying", "a lease is respected");
    assert_eq!(client.wait_for_version("a", 1).await["state"], "verified");
}

#[tokio::test]
async fn two_workers_check_each_upload_once() {
    let plant = Plant::start().await;
    plant.start_worker();
    let client = plant.app.sign_up("busy").await;
    let pushes = (0..6).map(|n| {
        let client = &client;
        async move { client.push(&format!("a-{n}"), &small_adapter(n), Ahead::Yes).await.unwrap() }
    });
    for version in futures::future::join_all(pushes).await {
        assert_eq!(version["state"], "verified", "{version}");
    }
    plant.settle().await;
    let published: i64 =
        sqlx::query_scalar("select count(*) from audit where action = 'adapter_version.publish'")
            .fetch_one(&mut plant.app.owner().await)
            .await
            .unwrap();
    assert_eq!(published, 6);
}
