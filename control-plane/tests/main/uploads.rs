//! Uploads that succeed: sent, resumed, checked, packed and published.

use crate::push::{Ahead, Plant, files_in, files_of, large_adapter, small_adapter};
use lorikeet_contract::adapter::ArtifactHeader;
use lorikeet_contract::adapter::files::WEIGHTS_FILE;
use lorikeet_contract::adapter::testing::{RandomAdapter, smollm2_135m};
use lorikeet_contract::link::AdapterState;
use lorikeet_contract::{ContentDigest, Linear};
use reqwest::StatusCode;
use serde_json::{Value, json};

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

    let resource = plant.resource(&version).await.unwrap();
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
    let pending = plant.resource(&version).await.unwrap();
    assert_eq!(pending.state(), AdapterState::Pending);
    assert_eq!(pending.artifact, None);

    plant.report_base_model(&smollm2_135m()).await;
    let version = client.wait_for_version("a", 1).await;
    assert_eq!(version["state"], "verified");
    let repeated = client.post(&path, json!({})).await;
    assert_eq!(repeated.status, StatusCode::ACCEPTED, "completing again is harmless");
    assert_eq!(plant.resource(&version).await.unwrap().state(), AdapterState::Servable);
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

    assert_eq!(plant.resource(&second).await, None, "a failed version leaves the manifest");
    for version in [&first, &third] {
        assert_eq!(plant.resource(version).await.unwrap().state(), AdapterState::Servable);
    }
    let versions = client.get("/api/v1/adapters/a").await.body["versions"].clone();
    let numbers: Vec<_> =
        versions.as_array().unwrap().iter().map(|v| v["version"].clone()).collect();
    assert_eq!(numbers, [3, 2, 1]);
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
