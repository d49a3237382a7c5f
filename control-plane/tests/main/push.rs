//! A client that uploads adapters, and an application with an object store and a job worker.

use crate::support::{Answer, Client, TestApp, connect, send};
use lorikeet_contract::BaseModelSpec;
use lorikeet_contract::adapter::Dtype;
use lorikeet_contract::adapter::files::{CONFIG_FILE, WEIGHTS_FILE};
use lorikeet_contract::adapter::testing::{AdapterFiles, RandomAdapter, smollm2_135m};
use lorikeet_contract::link::{AdapterResource, ResourceKind};
use lorikeet_control_plane::jobs::{self, JobContext};
use prost::Message;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const BUCKET: &str = "lorikeet";

/// An application, an S3 API in a directory, and a worker; the last two stop when dropped.
pub struct Plant {
    pub app: TestApp,
    store: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Plant {
    /// With a node's base model known.
    pub async fn start() -> Self {
        let plant = Self::without_node().await;
        plant.report_base_model(&smollm2_135m()).await;
        plant
    }

    /// Before the first node has connected.
    pub async fn without_node() -> Self {
        let store = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let credential = lorikeet_s3::Credential {
            access_key: "access".into(),
            secret_key: "secret".into(),
            access: lorikeet_s3::Access::ReadWrite,
        };
        let config = lorikeet_s3::Config {
            root: store.path().into(),
            bucket: BUCKET.into(),
            allowed_origins: vec![],
            credentials: vec![credential],
        };
        tokio::spawn(lorikeet_s3::serve(listener, config, stop.clone()));
        let app = TestApp::start_with(&[("LORIKEET_S3_ENDPOINT", &endpoint)]).await;
        let plant = Self { app, store, stop };
        plant.start_worker();
        plant
    }

    pub fn start_worker(&self) {
        let context =
            JobContext { db: self.app.state.db.clone(), objects: self.app.state.objects.clone() };
        tokio::spawn(jobs::run(context, self.stop.child_token()));
    }

    pub async fn report_base_model(&self, base: &BaseModelSpec) {
        self.execute(
            "insert into base_model (weights_digest, id, spec) values (decode($1, 'hex'), $2, $3::jsonb)",
            &[&base.weights_digest.to_string(), &base.id, &serde_json::to_string(base).unwrap()],
        )
        .await;
    }

    /// As the schema's owner, who sees every row.
    pub async fn execute(&self, sql: &'static str, texts: &[&str]) -> u64 {
        let mut query = sqlx::query(sql);
        for text in texts {
            query = query.bind(*text);
        }
        query.execute(&mut self.app.owner().await).await.unwrap().rows_affected()
    }

    /// The version's resource as nodes get it; none when it is a tombstone or was never published.
    pub async fn resource(&self, version: &Value) -> Option<AdapterResource> {
        let payload: Option<Option<Vec<u8>>> =
            sqlx::query_scalar("select payload from manifest_change where kind = $1 and id = $2")
                .bind(ResourceKind::Adapter as i32)
                .bind(version["version_id"].as_str().unwrap())
                .fetch_optional(&mut self.app.owner().await)
                .await
                .unwrap();
        Some(AdapterResource::decode(payload??.as_slice()).unwrap())
    }

    /// Until a transaction waits for a row that another one holds.
    pub async fn until_somebody_waits_for_a_lock(&self) {
        let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'
                     and datname = current_database()";
        let mut looking = connect("postgres", &self.app.database).await;
        let started = Instant::now();
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut looking).await.unwrap() == 0 {
            assert!(started.elapsed() < PATIENCE, "nobody waits for a lock");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn object(&self, key: &str) -> PathBuf {
        self.store.path().join(BUCKET).join(key)
    }

    /// Keys of all objects, sorted.
    pub fn objects(&self) -> Vec<String> {
        let root = self.store.path().join(BUCKET);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    }

    /// Waits until no job is due or running.
    pub async fn settle(&self) {
        let started = Instant::now();
        loop {
            let open: Vec<(String, Option<String>)> = sqlx::query_as(
                "select kind, last_error from job where finished_at is null and failed_at is null
                 and run_at < now() + interval '1 hour'",
            )
            .fetch_all(&mut self.app.owner().await)
            .await
            .unwrap();
            if open.is_empty() {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "jobs are left over: {open:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The files of an upload, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

pub fn small_adapter(seed: u64) -> Files {
    let adapter = RandomAdapter { rank: 2, seed, ..RandomAdapter::default() };
    files_of(adapter.files(&smollm2_135m()))
}

/// More than one part.
pub fn large_adapter() -> Files {
    let adapter = RandomAdapter { rank: 64, dtype: Dtype::F32, ..RandomAdapter::default() };
    files_of(adapter.files(&smollm2_135m()))
}

pub fn files_of(adapter: AdapterFiles) -> Files {
    Files::from([
        (CONFIG_FILE.to_owned(), adapter.config),
        (WEIGHTS_FILE.to_owned(), adapter.weights),
    ])
}

pub fn files_in(dir: &Path) -> Files {
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read(path).unwrap())
    };
    std::fs::read_dir(dir).unwrap().map(file).collect()
}

/// Does the client send configuration and header ahead?
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ahead {
    Yes,
    No,
}

impl Client<'_> {
    pub async fn start_upload(&self, name: &str, files: &Files, ahead: Ahead) -> Answer {
        let list: Vec<_> =
            files.iter().map(|(name, b)| json!({ "name": name, "bytes": b.len() })).collect();
        let mut body = json!({ "files": list });
        if ahead == Ahead::Yes {
            add_head(&mut body, files);
        }
        self.post(&format!("/api/v1/adapters/{name}/versions"), body).await
    }

    /// Sends a part as planned and reports it.
    pub async fn send_part(&self, upload: &str, file: &str, part: &Value, bytes: &[u8]) {
        let offset = part["offset"].as_u64().unwrap() as usize;
        let len = part["bytes"].as_u64().unwrap() as usize;
        let put = put_object(part, bytes[offset..offset + len].to_vec()).await;
        assert_eq!(put.status(), StatusCode::OK);
        let etag = put.headers()["etag"].to_str().unwrap();
        let report = json!({ "file": file, "number": part["number"], "etag": etag, "bytes": len });
        let path = format!("/api/v1/uploads/{upload}/parts");
        let reported = self.put(&path, json!({ "parts": [report] })).await;
        assert_eq!(reported.status, StatusCode::NO_CONTENT, "{reported:?}");
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::PUT, path).json(&body)).await
    }

    /// Sends an upload of `name` whole: it is to be checked next.
    pub async fn complete_upload(&self, name: &str, files: &Files) -> Answer {
        let started = self.start_upload(name, files, Ahead::Yes).await.body;
        self.send_all_parts(&started, files).await;
        let upload = started["upload_id"].as_str().unwrap();
        self.post(&format!("/api/v1/uploads/{upload}/complete"), json!({})).await
    }

    pub async fn send_all_parts(&self, started: &Value, files: &Files) {
        let upload = started["upload_id"].as_str().unwrap();
        for file in started["files"].as_array().unwrap() {
            let name = file["name"].as_str().unwrap();
            for part in file["parts"].as_array().unwrap() {
                self.send_part(upload, name, part, &files[name]).await;
            }
        }
    }

    /// The whole way: the version when it has been decided on, or the refusal at the door.
    pub async fn push(&self, name: &str, files: &Files, ahead: Ahead) -> Result<Value, Answer> {
        let started = self.start_upload(name, files, ahead).await;
        if started.status != StatusCode::CREATED {
            return Err(started);
        }
        self.send_all_parts(&started.body, files).await;
        let upload = started.body["upload_id"].as_str().unwrap();
        let done = self.post(&format!("/api/v1/uploads/{upload}/complete"), json!({})).await;
        assert_eq!(done.status, StatusCode::ACCEPTED, "{done:?}");
        assert_eq!(done.body["version_id"], started.body["version_id"]);
        Ok(self.wait_for_version(name, done.body["version"].as_i64().unwrap()).await)
    }

    /// Until it is verified or failed.
    pub async fn wait_for_version(&self, name: &str, number: i64) -> Value {
        let started = Instant::now();
        loop {
            let version = self.get(&format!("/api/v1/adapters/{name}/versions/{number}")).await;
            assert_eq!(version.status, StatusCode::OK, "{version:?}");
            if version.body["state"] != "verifying" {
                return version.body;
            }
            assert!(started.elapsed() < PATIENCE, "{version:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// As a browser sends it: no credential but the URL.
pub async fn put_object(part: &Value, bytes: Vec<u8>) -> reqwest::Response {
    let url = part["url"].as_str().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.put(url).body(bytes).send().await.unwrap()
}

fn add_head(body: &mut Value, files: &Files) {
    use base64::prelude::{BASE64_STANDARD, Engine};
    if let Some(config) = files.get(CONFIG_FILE).and_then(|c| serde_json::from_slice(c).ok()) {
        body["config"] = config;
    }
    if let Some(weights) = files.get(WEIGHTS_FILE) {
        let claimed = weights.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len));
        let len = claimed.saturating_add(8).min(weights.len() as u64).min(1 << 20) as usize;
        body["header"] = BASE64_STANDARD.encode(&weights[..len]).into();
    }
}
