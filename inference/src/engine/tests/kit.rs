//! Trained adapters on the real model, through the whole node below the API: object store, disk
//! cache, host memory, device, and one batch over all of them.

use super::harness::{Reader, request};
use crate::adapters::loader::AdapterSource;
use crate::adapters::{AdapterKey, AdapterManifest, LocalStore, ResidencyConfig};
use crate::engine::{EngineConfig, EngineHandle, spawn};
use crate::fixture::{base_model, packed_adapter};
use crate::scheduler::SchedulerConfig;
use crate::share::TenantShare;
use lorikeet_compute::backend::cpu::{self, CpuConfig};
use lorikeet_contract::adapter::testing::RandomAdapter;
use lorikeet_contract::adapter::{ArtifactHeader, inspect, pack};
use lorikeet_contract::{ContentDigest, Linear};
use lorikeet_kit::Case;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Below this margin a case's tokens are not compared (see the kit's README).
pub const MARGIN: f64 = 0.5;

struct Tenant {
    name: String,
    /// None: the base model.
    adapter: Option<Arc<AdapterManifest>>,
    cases: Vec<Case>,
}

/// Puts a packed adapter into the store, once, and makes it one of tenant `id`.
pub fn store(
    root: &Path,
    id: u8,
    name: &str,
    header: &ArtifactHeader,
    file: &[u8],
) -> Arc<AdapterManifest> {
    let object_key = format!("{name}.lka");
    if !root.join(&object_key).exists() {
        std::fs::write(root.join(&object_key), file).unwrap();
    }
    let tenant = super::harness::tenant(id);
    Arc::new(AdapterManifest {
        key: AdapterKey { tenant, digest: header.adapter_digest },
        object_key,
        bytes: file.len() as u64,
        artifact_digest: ContentDigest::of(file).into(),
        max_rank: header.max_rank(),
    })
}

/// The base, and every required adapter that is at hand.
fn tenants(root: &Path) -> Vec<Tenant> {
    let cases = lorikeet_kit::reference(None).cases;
    let mut tenants = vec![Tenant { name: "base".into(), adapter: None, cases }];
    for entry in lorikeet_kit::index().adapters.into_iter().filter(|a| a.required) {
        let Some((header, file)) = packed_adapter(&entry.adapter) else { continue };
        let cases = lorikeet_kit::reference(Some(&entry.adapter)).cases;
        let adapter = Some(store(root, tenants.len() as u8, &entry.adapter, &header, &file));
        tenants.push(Tenant { name: entry.adapter, adapter, cases });
    }
    tenants
}

/// A generated adapter, which has no reference.
fn rslora(root: &Path, id: u8) -> Arc<AdapterManifest> {
    let base = &base_model().weights.config.spec;
    let targets = vec![Linear::GateProj, Linear::UpProj, Linear::DownProj];
    let random = RandomAdapter { use_rslora: true, targets, ..RandomAdapter::default() };
    let files = random.files(base);
    let mut weights = Cursor::new(files.weights);
    let inspected = inspect(&files.config, &mut weights, base).unwrap();
    let mut file = Vec::new();
    let packed = pack(&inspected.plan, inspected.digest, &mut weights, &mut file).unwrap();
    store(root, id, "rslora", &packed.header, &file)
}

pub fn start(root: &Path, device_bytes: u64, residency: ResidencyConfig) -> EngineHandle {
    let model = &base_model().weights;
    let config = EngineConfig {
        scheduler: SchedulerConfig::default(),
        residency,
        max_requests: 128,
        base: model.config.spec.clone(),
        eos_tokens: model.config.eos_tokens.clone(),
    };
    let source = AdapterSource {
        store: Arc::new(LocalStore::new(root.into())),
        directory: root.join("cache"),
        runtime: tokio::runtime::Handle::current(),
    };
    let cpu_config =
        CpuConfig { kv_tokens: 8192, adapter_bytes: device_bytes, ..CpuConfig::default() };
    let backend = move || cpu::backend(model, cpu_config);
    spawn(config, source, backend).unwrap().0
}

fn submit(handle: &EngineHandle, tenant: u8, of: &Tenant, case: &Case) -> Reader {
    let (mut request, reader) = request(tenant, of.adapter.as_ref(), &case.prompt_ids, 32);
    request.ignore_eos = false;
    handle.try_submit(request).unwrap();
    reader
}

async fn read_to_end(readers: &mut [(&Tenant, &Case, Reader)]) {
    while readers.iter().any(|(_, _, reader)| reader.end.is_none()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
        readers.iter_mut().for_each(|(_, _, reader)| reader.read());
    }
}

fn assert_references(readers: &[(&Tenant, &Case, Reader)]) {
    let mut compared = 0;
    for (tenant, case, reader) in readers {
        assert!(reader.reason().is_some(), "{} {}: {:?}", tenant.name, case.id, reader.end);
        if case.min_margin >= MARGIN {
            assert_eq!(reader.tokens, case.tokens, "{} {}", tenant.name, case.id);
            compared += 1;
        }
    }
    assert!(compared > readers.len() / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_trained_adapters_and_the_base_answer_in_one_pass_as_their_references_do() {
    let directory = TempDir::new().unwrap();
    let tenants = tenants(directory.path());
    let generated = rslora(directory.path(), 100);
    let handle = start(directory.path(), 64 << 20, ResidencyConfig::default());
    let adapters = || tenants.iter().filter_map(|t| t.adapter.as_ref()).chain([&generated]);
    let wanted = adapters().count();
    let warm_ups = adapters().map(|a| handle.warm_up(a.clone(), TenantShare::default()));
    for warm_up in futures::future::join_all(warm_ups).await {
        warm_up.unwrap();
    }

    let mut watch = handle.watch();
    let widest = tokio::spawn(async move {
        let mut widest = (0, 0);
        while watch.changed().await.is_ok() {
            let step = &watch.borrow().last_step;
            widest = widest.max((step.adapters.len(), step.base_sequences));
        }
        widest
    });
    let each = tenants.iter().zip(0..);
    let mut readers: Vec<_> =
        each.map(|(t, id)| (t, &t.cases[1], submit(&handle, id, t, &t.cases[1]))).collect();
    let (own, mut other) = request(100, Some(&generated), &tenants[0].cases[1].prompt_ids, 64);
    handle.try_submit(own).unwrap();
    read_to_end(&mut readers).await;
    assert_references(&readers);
    while other.end.is_none() {
        tokio::time::sleep(Duration::from_millis(2)).await;
        other.read();
    }
    assert!(other.reason().is_some());
    handle.shutdown().await;
    drop(handle);
    let (adapters, base) = widest.await.unwrap();
    assert_eq!((adapters, base), (wanted, 1), "all in one pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_room_for_a_few_adapters_all_still_answer_as_their_references_do() {
    let directory = TempDir::new().unwrap();
    let tenants = tenants(directory.path());
    let bytes = || tenants.iter().filter_map(|t| t.adapter.as_ref()).map(|a| a.bytes);
    let room = bytes().max().unwrap() + (2 << 20);
    assert!(room < bytes().sum::<u64>() / 2, "not all fit");
    let residency = ResidencyConfig {
        host_bytes: room,
        disk_bytes: room + (4 << 20),
        quantum: Duration::from_millis(200),
        ..ResidencyConfig::default()
    };
    let handle = start(directory.path(), room, residency);
    let mut readers = Vec::new();
    for case in 1..3 {
        for (tenant, id) in tenants.iter().zip(0..) {
            let case = &tenant.cases[case];
            drop(submit(&handle, id, tenant, case));
            readers.push((tenant, case, submit(&handle, id, tenant, case)));
        }
    }
    read_to_end(&mut readers).await;
    assert_references(&readers);
    let report = handle.stats().residency;
    for tier in [report.device, report.host, report.disk] {
        assert!(tier.used <= tier.capacity);
    }
    handle.shutdown().await;
}
