//! A node on a real socket, and customers of two tenants.

use super::super::{Sockets, serve};
use super::control_plane::{ControlPlane, SOON};
use crate::adapters::{LocalStore, ObjectStore, ResidencyConfig, S3Config};
use crate::config::{Config, Device, DrainConfig, ToolCalls};
use crate::fixture::{base_model, packed_adapter};
use crate::scheduler::SchedulerConfig;
use crate::telemetry::TraceConfig;
use crate::usage::LogConfig;
use lorikeet_compute::backend::cpu::CpuConfig;
use lorikeet_compute::backend::cuda::CudaConfig;
use lorikeet_compute::backend::sim::{SimConfig, SimCost};
use lorikeet_contract::key::ApiKey;
use lorikeet_contract::link::{
    AdapterResource, AdapterState, Artifact, KeyResource, Resource, ResourceKind, TenantResource,
};
use lorikeet_contract::usage::NodeClaims;
use lorikeet_contract::{AdapterId, AdapterVersionId, ContentDigest, KeyId, NodeId, TenantId};
use lorikeet_http::Patience;
use prost::Message;
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const MODEL: &str = "base";

/// A tenant with one key.
pub struct Customer {
    pub tenant: TenantId,
    pub key: ApiKey,
    pub key_id: KeyId,
}

impl Customer {
    pub fn new() -> Self {
        Self { tenant: TenantId::new(), key: ApiKey::generate(), key_id: KeyId::new() }
    }

    pub fn tenant_resource(&self) -> TenantResource {
        let id = self.tenant.to_string();
        TenantResource { id, name: "customer".into(), ..TenantResource::default() }
    }

    pub fn key_resource(&self) -> KeyResource {
        KeyResource {
            id: self.key_id.to_string(),
            tenant_id: self.tenant.to_string(),
            key_id: self.key.key_id().into(),
            secret_hash: self.key.secret_hash().to_vec(),
            scopes: vec!["inference".into()],
            expires_unix_ms: None,
        }
    }

    pub fn resources(&self) -> Vec<Resource> {
        vec![tenant(self.tenant_resource()), key(self.key_resource())]
    }

    /// An adapter whose bytes are nowhere.
    pub fn adapter(&self, name: &str, state: AdapterState) -> AdapterResource {
        AdapterResource {
            id: AdapterVersionId::new().to_string(),
            tenant_id: self.tenant.to_string(),
            adapter_id: AdapterId::new().to_string(),
            name: name.into(),
            version: 1,
            digest: vec![8; 32],
            base_weights_digest: base_model().weights.config.spec.weights_digest.0.to_vec(),
            artifact: Some(Artifact {
                layout_version: 1,
                object_key: "nowhere".into(),
                bytes: 4096,
                digest: vec![9; 32],
            }),
            max_rank: 16,
            targets: vec!["q_proj".into()],
            state: state as i32,
            pinned: false,
        }
    }
}

pub fn tenant(payload: TenantResource) -> Resource {
    resource(ResourceKind::Tenant, payload.id.clone(), &payload)
}

pub fn key(payload: KeyResource) -> Resource {
    resource(ResourceKind::Key, payload.id.clone(), &payload)
}

pub fn adapter(payload: AdapterResource) -> Resource {
    resource(ResourceKind::Adapter, payload.id.clone(), &payload)
}

fn resource(kind: ResourceKind, id: String, payload: &impl Message) -> Resource {
    Resource { kind: kind as i32, id, payload: payload.encode_to_vec() }
}

/// A running node and where it keeps its data.
pub struct Node {
    pub address: SocketAddr,
    pub metrics: SocketAddr,
    pub data: TempDir,
    pub objects: PathBuf,
    shutdown: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Node {
    /// A fresh node of this control plane, before it has a manifest.
    pub async fn start(control_plane: &ControlPlane, tweak: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        Self::start_on(data, &control_plane.url(), tweak).await
    }

    /// The same, ready to serve.
    pub async fn ready(control_plane: &ControlPlane, tweak: impl FnOnce(&mut Config)) -> Self {
        let node = Self::start(control_plane, tweak).await;
        node.until_ready().await;
        node
    }

    pub async fn start_on(
        data: TempDir,
        control_plane: &str,
        tweak: impl FnOnce(&mut Config),
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let metrics_listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let metrics = metrics_listener.local_addr().expect("an address");
        let objects = data.path().join("objects");
        let mut config = config(data.path(), control_plane, address);
        tweak(&mut config);
        let store: Arc<dyn ObjectStore> = Arc::new(LocalStore::new(objects.clone()));
        let sockets = Sockets { api: listener, metrics: Some(metrics_listener) };
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(config, sockets, store, shutdown.clone()));
        Self { address, metrics, data, objects, shutdown, served }
    }

    pub async fn until_ready(&self) {
        let ready = async {
            while self.get("/ready", None).await.0 != StatusCode::OK {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(SOON, ready).await.is_err() {
            panic!("not ready soon enough: {}", self.get("/ready", None).await.1);
        }
    }

    /// Waits until its model is there.
    pub async fn until_loaded(&self) {
        while self.get("/ready", None).await.1.contains("is being loaded") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What SIGTERM does.
    pub fn tell_to_stop(&self) {
        self.shutdown.cancel();
    }

    /// Stops it in order, and gives its data back.
    pub async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        let served = tokio::time::timeout(SOON, self.served).await.expect("it ends soon enough");
        served.expect("no panic").expect("an orderly end");
        self.data
    }

    /// Waits for it to end by itself, with the reason.
    pub async fn fails(self) -> String {
        let served = tokio::time::timeout(SOON, self.served).await.expect("it ends soon enough");
        format!("{:#}", served.expect("no panic").expect_err("it fails"))
    }

    /// What its disk would hold after kill -9 at this moment.
    pub fn crash_image(&self) -> TempDir {
        let image = tempfile::tempdir().expect("a directory");
        copy(self.data.path(), image.path());
        image
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn get(&self, path: &str, key: Option<&str>) -> (StatusCode, String) {
        let mut request = reqwest::Client::new().get(self.url(path)).timeout(SOON);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.expect("an answer");
        assert_declared("get", path, response.status());
        (response.status(), response.text().await.expect("a body"))
    }

    pub async fn post(&self, key: &str, body: &Value) -> reqwest::Response {
        self.post_to("/v1/chat/completions", key, body).await
    }

    pub async fn post_to(&self, path: &str, key: &str, body: &Value) -> reqwest::Response {
        let request = reqwest::Client::new().post(self.url(path));
        let request = request.timeout(SOON).bearer_auth(key).json(body);
        let response = request.send().await.expect("an answer");
        assert_declared("post", path, response.status());
        response
    }

    /// A chat that must succeed.
    pub async fn chat(&self, customer: &Customer, more: Value) -> Value {
        let response = self.post(customer.key.reveal(), &chat(more)).await;
        let status = response.status();
        let body: Value = response.json().await.expect("JSON");
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// A chat that must fail: status and error object.
    pub async fn refused(&self, key: &str, more: Value) -> (StatusCode, Value) {
        let response = self.post(key, &chat(more)).await;
        let status = response.status();
        let body: Value = response.json().await.expect("JSON");
        assert!(!status.is_success(), "{body}");
        (status, body["error"].clone())
    }
}

/// Whatever a test meets is in the API's description.
fn assert_declared(method: &str, path: &str, status: StatusCode) {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(crate::api::document);
    let Some(pattern) = lorikeet_reference::pattern_of(&DOCUMENT, path) else { return };
    let known = DOCUMENT["paths"][pattern].get(method).is_some();
    let declared = lorikeet_reference::declares(&DOCUMENT, method, pattern, status.as_u16());
    assert!(declared || !known, "{method} {pattern} answers {status}, which is not declared");
}

/// A node that serves one customer.
pub async fn node_of_one(tweak: impl FnOnce(&mut Config)) -> (ControlPlane, Node, Customer) {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let node = Node::ready(&control_plane, tweak).await;
    (control_plane, node, customer)
}

/// A small chat with the base model, changed by `more`.
pub fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": MODEL,
        "messages": [{ "role": "user", "content": "Tell me of lorikeets." }],
        "max_tokens": 8,
        "seed": 1,
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

pub fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("text")
}

/// Puts a kit adapter, packed, where the node's objects are, and publishes it under `name`. None where
/// the checkout lacks its weights.
pub fn store_adapter(node: &Node, owner: &Customer, name: &str, kit: &str) -> Option<Resource> {
    let (header, file) = packed_adapter(kit)?;
    std::fs::create_dir_all(&node.objects).expect("a directory");
    std::fs::write(node.objects.join(name), &file).expect("written");
    let resource = AdapterResource {
        digest: header.adapter_digest.0.to_vec(),
        artifact: Some(Artifact {
            layout_version: 1,
            object_key: name.into(),
            bytes: file.len() as u64,
            digest: ContentDigest::of(&file).0.to_vec(),
        }),
        max_rank: header.max_rank(),
        ..owner.adapter(name, AdapterState::Servable)
    };
    Some(adapter(resource))
}

/// Slow enough to be caught in the middle of an answer: 4,000 tokens take half a minute.
pub fn slowly(config: &mut Config) {
    let cost = SimCost { step: Duration::from_millis(8), ..SimCost::FREE };
    config.device = Device::Sim(SimConfig { cost, ..SimConfig::default() });
}

/// What computes the real model: the CPU, unless `LORIKEET_TEST_DEVICE=cuda` asks for the GPU.
pub fn real_device() -> Device {
    match std::env::var("LORIKEET_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu(CpuConfig::default()),
        Ok("cuda") => Device::Cuda(CudaConfig {
            // Nodes of several tests share it.
            kv_tokens: Some(1 << 16),
            adapter_bytes: Some(1 << 30),
            ..CudaConfig::default()
        }),
        Ok(other) => panic!("LORIKEET_TEST_DEVICE is {other}: cpu and cuda are known"),
    }
}

pub fn config(data: &Path, control_plane: &str, address: SocketAddr) -> Config {
    let token_file = data.join("token");
    if !token_file.exists() {
        std::fs::write(&token_file, token(NodeId::new())).expect("written");
    }
    let cost = SimCost { step: Duration::from_millis(1), ..SimCost::FREE };
    Config {
        listen: address,
        metrics_listen: None,
        trace: TraceConfig { endpoint: None, ca: None, sampled: 1.0 },
        data: data.to_owned(),
        name: "test".into(),
        control_plane: control_plane.into(),
        control_plane_ca: None,
        token_file,
        model: lorikeet_kit::model_path(),
        model_name: Some(MODEL.into()),
        tool_calls: ToolCalls::Auto,
        public_api_url: format!("http://{address}/v1"),
        cors_origins: vec!["https://app.example".parse().expect("a value")],
        dashboard_origin: Some("https://dashboard.example".parse().expect("a value")),
        s3: S3Config {
            endpoint: String::new(),
            bucket: String::new(),
            region: String::new(),
            access_key: String::new(),
            secret_key: String::new(),
        },
        device: Device::Sim(SimConfig { cost, ..SimConfig::default() }),
        scheduler: SchedulerConfig::default(),
        residency: ResidencyConfig::default(),
        max_requests: 64,
        patience: Patience::default(),
        read_body_within: Duration::from_secs(60),
        request_within: Duration::from_secs(3600),
        drain: DrainConfig { grace: Duration::ZERO, timeout: Duration::from_secs(30) },
        usage: LogConfig { progress_every: Duration::from_millis(10), ..LogConfig::default() },
    }
}

/// The signature is the control plane's business; this one is of no use.
fn token(node: NodeId) -> String {
    let claims = NodeClaims {
        iss: NodeClaims::ISSUER.into(),
        aud: NodeClaims::AUDIENCE.into(),
        sub: node.to_string(),
        name: "test".into(),
        nbf: 0,
        exp: u64::MAX,
    };
    let key = jsonwebtoken::EncodingKey::from_secret(b"of no use");
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            std::fs::create_dir(&target).expect("a directory");
            copy(&path, &target);
        } else {
            // A temporary file may be renamed away at any moment.
            let _ = std::fs::copy(&path, &target);
        }
    }
}
