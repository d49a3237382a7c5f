use super::control_plane::{ControlPlane, SOON};
use super::harness::{Customer, Node, adapter, chat, node_of_one};
use super::sse::Events;
use crate::config::{Config, Device};
use crate::usage::{Disk, FileSystem, SegmentFile};
use lorikeet_compute::backend::sim::{SimConfig, SimFaults};
use lorikeet_contract::link::{AdapterState, FinishReason, UsageKind};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_too_many_is_turned_away_at_once_and_may_come_again() {
    let (control_plane, node, customer) = node_of_one(|config| config.max_requests = 1).await;
    let long = chat(json!({ "stream": true, "max_tokens": 4000 }));
    let mut running = Events::of(node.post(customer.key.reveal(), &long).await);
    running.next().await.expect("it runs");

    let response = node.post(customer.key.reveal(), &chat(json!({}))).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "1");
    let error: Value = response.json().await.expect("JSON");
    assert_eq!(error["error"]["type"], "rate_limit_error");
    drop(running);
    let again = async {
        while !node.post(customer.key.reveal(), &chat(json!({}))).await.status().is_success() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, again).await.expect("room again");
    let seen = control_plane.until("both finals", |s| s.finals().len() == 2).await;
    assert_eq!(seen.usage().filter(|r| r.kind() == UsageKind::Open).count(), 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_engine_stops_requests_fail_their_usage_is_kept_and_the_node_ends() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let faults = SimFaults { error_at_step: Some(30), ..SimFaults::default() };
    let break_down = |config: &mut Config| {
        config.device = Device::Sim(SimConfig { faults, ..SimConfig::default() });
    };
    let node = Node::ready(&control_plane, break_down).await;
    let long = chat(json!({ "stream": true, "max_tokens": 4000 }));
    let mut events = Events::of(node.post(customer.key.reveal(), &long).await);
    let last = events.rest().await.pop().expect("a last event");
    assert_eq!(last["error"]["code"], "node_stopped", "{last}");
    let reason = node.fails().await;
    assert!(reason.contains("the engine stopped"), "{reason}");
    let finals = control_plane.seen().finals();
    assert_eq!(finals.len(), 1, "shipped before the node ended");
    assert_eq!(finals[0].finish_reason(), FinishReason::Error);
    assert!(finals[0].completion_tokens > 0, "what was delivered is billed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_that_cannot_be_loaded_fails_its_own_requests_with_the_reason() {
    let customer = Customer::new();
    let lost = adapter(customer.adapter("lost", AdapterState::Servable));
    let control_plane = ControlPlane::start([customer.resources(), vec![lost]].concat());
    let node = Node::ready(&control_plane, |_| {}).await;
    let (status, error) = node.refused(customer.key.reveal(), json!({ "model": "lost" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(error["code"], "adapter_load_failed");
    assert!(
        error["message"].as_str().unwrap().contains("missing from the object store"),
        "{error}"
    );
    node.chat(&customer, json!({})).await;
    node.stop().await;
}

/// A disk that can be full.
struct Filling(Arc<AtomicBool>);

impl Disk for Filling {
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(FillingFile { file: FileSystem.open(path)?, full: self.0.clone() }))
    }
}

struct FillingFile {
    file: Box<dyn SegmentFile>,
    full: Arc<AtomicBool>,
}

impl SegmentFile for FillingFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.append(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_usage_cannot_be_written_serves_nobody_until_it_can() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let full = Arc::new(AtomicBool::new(false));
    let disk = Arc::new(Filling(full.clone()));
    let node = Node::ready(&control_plane, |config| {
        config.usage.disk = disk;
        config.usage.retry_every = Duration::from_millis(50);
    })
    .await;
    let long = chat(json!({ "stream": true, "max_tokens": 4000 }));
    let mut running = Events::of(node.post(customer.key.reveal(), &long).await);
    running.next().await.expect("it runs");

    full.store(true, Ordering::SeqCst);
    let last = running.rest().await.pop().expect("a last event");
    assert_eq!(last["error"]["code"], "usage_log_unavailable", "nothing goes out unbilled");
    let (status, error) = node.refused(customer.key.reveal(), json!({})).await;
    assert_eq!((status.as_u16(), &error["code"]), (503, &json!("usage_log_unavailable")));
    assert_eq!(node.get("/ready", None).await.0, StatusCode::SERVICE_UNAVAILABLE);

    full.store(false, Ordering::SeqCst);
    node.until_ready().await;
    node.chat(&customer, json!({})).await;
    let seen = control_plane.until("both finals", |s| s.finals().len() == 2).await;
    let broken_off = seen.finals_with(FinishReason::Error);
    assert_eq!(broken_off.len(), 1);
    assert!(broken_off[0].completion_tokens > 0, "kept in memory until the disk had room");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_and_data_in_use_are_named() {
    let control_plane = ControlPlane::start(Vec::new());
    let node = Node::start(&control_plane, |_| {}).await;
    let address: SocketAddr = node.address;
    let taken = super::super::bind(address, "LORIKEET_NODE_LISTEN").await.expect_err("it is taken");
    assert!(format!("{taken:#}").contains(&address.to_string()), "{taken:#}");

    let api = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let sockets = super::super::Sockets { api, metrics: None };
    let config = super::harness::config(node.data.path(), &control_plane.url(), address);
    let store = Arc::new(crate::adapters::LocalStore::new(node.objects.clone()));
    node.until_loaded().await;
    let second = super::super::serve(config, sockets, store, CancellationToken::new()).await;
    let error = format!("{:#}", second.expect_err("the data is in use"));
    assert!(error.contains("in use by another process"), "{error}");
    node.stop().await;
}
