//! Uploads, their checks, and what becomes of adapters.

use crate::push::{Ahead, Files, Plant, files_in, files_of, put_object};
use crate::support::{TestApp, connect};
use lorikeet_contract::adapter::files::WEIGHTS_FILE;
use lorikeet_contract::adapter::testing::{RandomAdapter, smollm2_135m};
use lorikeet_contract::adapter::{ArtifactHeader, Dtype};
use lorikeet_contract::link::{AdapterResource, AdapterState, ResourceKind};
use lorikeet_contract::{ContentDigest, Linear};
use prost::Message;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::Connection;
use std::time::Duration;

fn small_adapter(seed: u64) -> Files {
    let adapter = RandomAdapter { rank: 2, seed, ..RandomAdapter::default() };
    files_of(adapter.files(&smollm2_135m()))
}

/// More than one part.
fn large_adapter() -> Files {
    let adapter = RandomAdapter { rank: 64, dtype: Dtype::F32, ..RandomAdapter::default() };
    files_of(adapter.files(&smollm2_135m()))
}

/// The version's resource as nodes get it; none when it is a tombstone or was never published.
async fn resource(plant: &Plant, version: &Value) -> Option<AdapterResource> {
    let payload: Option<Option<Vec<u8>>> =
        sqlx::query_scalar("select payload from manifest_change where kind = $1 and id = $2")
            .bind(ResourceKind::Adapter as i32)
            .bind(version["version_id"].as_str().unwrap())
            .fetch_optional(&mut plant.app.owner().await)
            .await
            .unwrap();
    Some(AdapterResource::decode(payload??.as_slice()).unwrap())
}

#[tokio::test]
async fn an_uploaded_adapter_is_checked_packed_and_published() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("pirate-co").await;
    let files = files_in(&lorikeet_kit::adapter_dir("pirate"));
    let version = client.push("pirate", &files, Ahead::Yes).await.unwrap();
    assert_eq!(version["state"], "verified", "{version}");
    assert_eq!(version["rank"], 16);
    assert_eq!(version["targets"], json!(["q_proj", "k_proj", "v_proj", "o_proj"]));
    assert_eq!(version["error"], Value::Null);

    let resource = resource(&plant, &version).await.unwrap();
    assert_eq!(resource.state(), AdapterState::Servable);
    assert_eq!((resource.name.as_str(), resource.version), ("pirate", 1));
    assert_eq!(resource.tenant_id, client.tenant);
    assert_eq!(hex::encode(&resource.digest), version["digest"]);
    let artifact = resource.artifact.unwrap();
    let packed = std::fs::read(plant.object(&artifact.object_key)).unwrap();
    assert_eq!(artifact.bytes, packed.len() as u64);
    assert_eq!(artifact.digest, ContentDigest::of(&packed).as_bytes());
    let header = ArtifactHeader::parse(&packed, artifact.bytes).unwrap();
    assert_eq!(header.adapter_digest.as_bytes().as_slice(), resource.digest);
    assert_eq!(header.modules.len(), 120);
    assert_eq!(version["parameters"], header.parameters());

    plant.settle().await;
    let kept = plant.objects();
    assert_eq!(kept.len(), 3, "the originals and the packed file, nothing staged: {kept:?}");
    let source = kept.iter().find(|k| k.ends_with(WEIGHTS_FILE)).unwrap();
    assert_eq!(std::fs::read(plant.object(source)).unwrap(), files[WEIGHTS_FILE]);
    let listed = client.get("/api/v1/adapters").await.body;
    assert_eq!(listed["adapters"][0]["name"], "pirate");
    assert_eq!(listed["adapters"][0]["latest_version"], version);
}

#[tokio::test]
async fn before_the_first_node_an_upload_waits_and_says_so() {
    let plant = Plant::without_node().await;
    let client = plant.app.sign_up("early").await;
    let files = small_adapter(1);
    let started = client.start_upload("a", &files, Ahead::Yes).await;
    client.send_all_parts(&started.body, &files).await;
    let path = format!("/api/v1/uploads/{}/complete", started.body["upload_id"].as_str().unwrap());
    let version = client.post(&path, json!({})).await.body;
    assert_eq!(version["state"], "verifying");
    assert!(version["waiting_for"].as_str().unwrap().contains("node"), "{version}");
    let pending = resource(&plant, &version).await.unwrap();
    assert_eq!(pending.state(), AdapterState::Pending);
    assert_eq!(pending.artifact, None);

    plant.report_base_model(&smollm2_135m()).await;
    let version = client.wait_for_version("a", 1).await;
    assert_eq!(version["state"], "verified");
    let repeated = client.post(&path, json!({})).await;
    assert_eq!(repeated.status, StatusCode::ACCEPTED, "completing again is harmless");
    assert_eq!(resource(&plant, &version).await.unwrap().state(), AdapterState::Servable);
}

#[tokio::test]
async fn an_interrupted_upload_goes_on_where_it_stopped() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("resume").await;
    let files = large_adapter();
    let started = client.start_upload("big", &files, Ahead::Yes).await.body;
    let upload = started["upload_id"].as_str().unwrap();
    let weights = started["files"].as_array().unwrap().iter().find(|f| f["name"] == WEIGHTS_FILE);
    let parts = weights.unwrap()["parts"].as_array().unwrap().clone();
    assert_eq!(parts.len(), 2);
    client.send_part(upload, WEIGHTS_FILE, &parts[1], &files[WEIGHTS_FILE]).await;

    let complete = format!("/api/v1/uploads/{upload}/complete");
    let refused = client.post(&complete, json!({})).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, "upload_incomplete"));
    let resumed = client.get(&format!("/api/v1/uploads/{upload}")).await.body;
    for file in resumed["files"].as_array().unwrap() {
        let name = file["name"].as_str().unwrap();
        for part in file["parts"].as_array().unwrap() {
            assert_eq!(part["received"], name == WEIGHTS_FILE && part["number"] == 2);
            if part["received"] == false {
                client.send_part(upload, name, part, &files[name]).await;
            }
        }
    }
    assert_eq!(client.post(&complete, json!({})).await.status, StatusCode::ACCEPTED);
    assert_eq!(client.wait_for_version("big", 1).await["state"], "verified");
    let closed = client.get(&format!("/api/v1/uploads/{upload}")).await.body;
    assert_eq!(closed["state"], "completed");
    assert_eq!(closed["files"][0]["parts"][0]["url"], Value::Null);
}

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
async fn uploading_to_an_existing_name_makes_the_next_version_and_a_bad_one_leaves_the_good_alone()
{
    let plant = Plant::start().await;
    let client = plant.app.sign_up("versions").await;
    let first = client.push("a", &small_adapter(1), Ahead::Yes).await.unwrap();
    let mut broken = small_adapter(2);
    broken.get_mut(WEIGHTS_FILE).unwrap().truncate(40_000);
    let second = client.push("a", &broken, Ahead::No).await.unwrap();
    assert_eq!((&second["version"], &second["state"]), (&json!(2), &json!("failed")));
    assert_eq!(second["error"]["code"], "invalid_safetensors");
    let third = client.push("a", &small_adapter(3), Ahead::Yes).await.unwrap();
    assert_eq!(third["version"], 3);

    assert_eq!(resource(&plant, &second).await, None, "a failed version leaves the manifest");
    for version in [&first, &third] {
        assert_eq!(resource(&plant, version).await.unwrap().state(), AdapterState::Servable);
    }
    let versions = client.get("/api/v1/adapters/a").await.body["versions"].clone();
    let numbers: Vec<_> =
        versions.as_array().unwrap().iter().map(|v| v["version"].clone()).collect();
    assert_eq!(numbers, [3, 2, 1]);
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
    assert_eq!(resource(&plant, &gone).await, None);
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

#[tokio::test]
async fn an_upload_that_cannot_be_checked_ends_in_an_apology_not_in_limbo() {
    let plant = Plant::without_node().await;
    let client = plant.app.sign_up("unlucky").await;
    let files = small_adapter(1);
    let started = client.start_upload("a", &files, Ahead::Yes).await.body;
    client.send_all_parts(&started, &files).await;
    let upload = started["upload_id"].as_str().unwrap();
    client.post(&format!("/api/v1/uploads/{upload}/complete"), json!({})).await;
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
    let files = small_adapter(1);
    let started = client.start_upload("a", &files, Ahead::Yes).await.body;
    client.send_all_parts(&started, &files).await;
    let upload = started["upload_id"].as_str().unwrap();
    client.post(&format!("/api/v1/uploads/{upload}/complete"), json!({})).await;
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
    let files = small_adapter(1);
    let started = client.start_upload("a", &files, Ahead::Yes).await.body;
    client.send_all_parts(&started, &files).await;
    let upload = started["upload_id"].as_str().unwrap();
    client.post(&format!("/api/v1/uploads/{upload}/complete"), json!({})).await;
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
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
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

#[tokio::test]
async fn every_format_that_is_promised_passes_the_upload() {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("formats").await;
    let generated = RandomAdapter {
        rank: 3,
        use_rslora: true,
        use_dora: true,
        targets: Linear::ALL.to_vec(),
        ..RandomAdapter::default()
    };
    let mut uploads = vec![("generated", files_of(generated.files(&smollm2_135m())))];
    for name in ["json", "shout", "sentiment", "order", "esperanto"] {
        uploads.push((name, files_in(&lorikeet_kit::adapter_dir(name))));
    }
    for (name, files) in uploads {
        let version = client.push(name, &files, Ahead::Yes).await.unwrap();
        assert_eq!(version["state"], "verified", "{name}: {version}");
    }
    let meow = files_in(&lorikeet_kit::adapter_dir("meow"));
    let refused = client.push("meow", &meow, Ahead::Yes).await.unwrap_err();
    assert_eq!(refused.code(), "unsupported_module");
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("lm_head"));
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
            // Until the other waits for a lock that this holds.
            let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'
                         and datname = current_database()";
            let mut looking = connect("postgres", &plant.app.database).await;
            while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut looking).await.unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
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
