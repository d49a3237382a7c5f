mod repair;

use super::*;
use crate::adapters::{LocalStore, ObjectError};
use async_trait::async_trait;
use bytes::Bytes;
use lorikeet_compute::backend::HeapAllocator;
use lorikeet_contract::adapter::testing::{RandomAdapter, smollm2_135m};
use lorikeet_contract::adapter::{AdapterConfig, AdapterPlan, Dtype, Header, pack};
use lorikeet_contract::{AdapterDigest, Linear, TenantId, WeightsDigest};
use std::fs;
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Two layers of wide shapes: an adapter of several ranges.
fn base() -> BaseModelSpec {
    BaseModelSpec { num_layers: 2, hidden_size: 2048, ..smollm2_135m() }
}

/// A packed adapter as the control plane stores it.
fn artifact(base: &BaseModelSpec) -> (Vec<u8>, AdapterManifest) {
    let random = RandomAdapter {
        rank: 256,
        dtype: Dtype::F32,
        targets: Linear::ALL.into(),
        ..Default::default()
    };
    let files = random.files(base);
    let config = AdapterConfig::parse(&files.config).unwrap();
    let header = Header::parse(&files.weights, files.weights.len() as u64).unwrap();
    let plan = AdapterPlan::new(&config, &header, base).unwrap();
    let digest = AdapterDigest([5; 32]);
    let mut packed = Vec::new();
    let facts = pack(&plan, digest, &mut Cursor::new(files.weights), &mut packed).unwrap();
    let manifest = AdapterManifest {
        key: AdapterKey { tenant: TenantId::new(), digest },
        object_key: "a.lka".into(),
        bytes: facts.bytes,
        artifact_digest: facts.digest,
        max_rank: facts.header.max_rank(),
    };
    (packed, manifest)
}

struct Rig {
    directory: TempDir,
    packed: Vec<u8>,
    manifest: Arc<AdapterManifest>,
    base: BaseModelSpec,
}

impl Rig {
    fn new() -> Self {
        let base = base();
        let (packed, manifest) = artifact(&base);
        let rig =
            Self { directory: TempDir::new().unwrap(), packed, manifest: manifest.into(), base };
        fs::create_dir(rig.store()).unwrap();
        rig.put(&rig.packed);
        rig
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn put(&self, bytes: &[u8]) {
        fs::write(self.store().join("a.lka"), bytes).unwrap();
    }

    fn open_with(&self, store: Arc<dyn ObjectStore>) -> (Loader, Vec<CachedFile>) {
        let runtime = Handle::current();
        let source = AdapterSource { store, directory: self.cache(), runtime };
        let engine = std::thread::current();
        Loader::open(source, Arc::new(HeapAllocator), self.base.clone(), engine).unwrap()
    }

    fn open(&self) -> (Loader, Vec<CachedFile>) {
        self.open_with(Arc::new(LocalStore::new(self.store())))
    }

    fn fetch(&self) -> LoadAction {
        LoadAction::Fetch(Arc::clone(&self.manifest))
    }

    fn read(&self) -> LoadAction {
        LoadAction::Read(Arc::clone(&self.manifest))
    }

    /// The one file in the cache.
    fn cached_file(&self) -> PathBuf {
        files(&self.cache().join("files")).pop().unwrap()
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

async fn perform(loader: &mut Loader, action: LoadAction) -> LoadEvent {
    loader.start(action);
    let mut events = Vec::new();
    while events.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        loader.poll(&mut events);
    }
    events.remove(0)
}

async fn fetch_error(rig: &Rig, loader: &mut Loader) -> String {
    let LoadEvent::Fetched { result, .. } = perform(loader, rig.fetch()).await else { panic!() };
    assert!(files(&rig.cache()).is_empty(), "nothing is left behind");
    let Err(FetchFailure::Failed(reason)) = result else { panic!("{result:?}") };
    reason
}

async fn read_error(rig: &Rig, loader: &mut Loader) -> ReadFailure {
    let LoadEvent::Read { result, .. } = perform(loader, rig.read()).await else { panic!() };
    result.err().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_arrives_in_host_memory_byte_for_byte_and_survives_a_restart() {
    let rig = Rig::new();
    let (mut loader, found) = rig.open();
    assert!(found.is_empty());
    let fetched = perform(&mut loader, rig.fetch()).await;
    assert!(matches!(fetched, LoadEvent::Fetched { result: Ok(()), .. }));
    drop(loader);
    fs::write(rig.cache().join("incoming/half-written"), b"LKAD").unwrap();
    fs::remove_file(rig.store().join("a.lka")).unwrap();

    let (mut loader, found) = rig.open();
    assert_eq!(found, [CachedFile::of(&rig.manifest)]);
    assert_eq!(files(&rig.cache()).len(), 1, "half-written files are swept");
    let LoadEvent::Read { result, .. } = perform(&mut loader, rig.read()).await else { panic!() };
    let adapter = result.unwrap_or_else(|failure| panic!("{}", failure.reason));
    assert_eq!(adapter.file().unwrap(), rig.packed);
    assert_eq!(adapter.header.max_rank(), 256);

    let dropped = LoadAction::DropFile(CachedFile::of(&rig.manifest));
    assert!(matches!(perform(&mut loader, dropped).await, LoadEvent::Dropped { .. }));
    assert!(files(&rig.cache()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_the_verified_ones_never_reach_the_cache() {
    let rig = Rig::new();
    let (mut loader, _) = rig.open();
    let mut changed = rig.packed.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    rig.put(&changed);
    let reason = fetch_error(&rig, &mut loader).await;
    assert!(reason.contains("not the ones that were verified"), "{reason}");
    rig.put(&rig.packed[..middle]);
    let reason = fetch_error(&rig, &mut loader).await;
    assert!(reason.contains("ends before byte"), "{reason}");
    fs::remove_file(rig.store().join("a.lka")).unwrap();
    let reason = fetch_error(&rig, &mut loader).await;
    assert!(reason.contains("missing from the object store"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_damaged_on_the_disk_is_noticed_and_removed() {
    let rig = Rig::new();
    let (mut loader, _) = rig.open();
    for damage in [0usize, 20] {
        perform(&mut loader, rig.fetch()).await;
        let mut bytes = rig.packed.clone();
        bytes[damage] ^= 0xff;
        fs::write(rig.cached_file(), &bytes).unwrap();
        let failure = read_error(&rig, &mut loader).await;
        assert!(failure.file_lost, "{}", failure.reason);
        assert!(files(&rig.cache()).is_empty());
    }
    perform(&mut loader, rig.fetch()).await;
    fs::write(rig.cached_file(), &rig.packed[..100]).unwrap();
    assert!(read_error(&rig, &mut loader).await.file_lost);
    assert!(read_error(&rig, &mut loader).await.file_lost, "a file that is gone can be fetched");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_for_another_base_is_refused_with_the_reason() {
    let mut rig = Rig::new();
    rig.base.weights_digest = WeightsDigest([1; 32]);
    let (mut loader, _) = rig.open();
    perform(&mut loader, rig.fetch()).await;
    let failure = read_error(&rig, &mut loader).await;
    assert!(failure.reason.contains("other base weights"), "{}", failure.reason);
    assert!(!failure.file_lost);
}

struct Panicking;

#[async_trait]
impl ObjectStore for Panicking {
    async fn get_range(&self, _: &str, _: Range<u64>) -> Result<Bytes, ObjectError> {
        panic!("injected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_panics_ends_with_a_reason() {
    let rig = Rig::new();
    let (mut loader, _) = rig.open_with(Arc::new(Panicking));
    assert_eq!(fetch_error(&rig, &mut loader).await, "loading it failed inside the node");
}

/// Fails the first reads, and counts how many run at once.
struct Troubled {
    inner: LocalStore,
    failures_left: Mutex<usize>,
    running: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl ObjectStore for Troubled {
    async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        let fails = {
            let mut left = self.failures_left.lock().unwrap();
            let fails = *left > 0;
            *left -= usize::from(fails);
            fails
        };
        if fails {
            let reason = "connection reset by 10.0.0.1".into();
            return Err(ObjectError::Unavailable { object: object.to_owned(), reason });
        }
        self.inner.get_range(object, range).await
    }
}

fn troubled(rig: &Rig, failures: usize) -> Arc<Troubled> {
    Arc::new(Troubled {
        inner: LocalStore::new(rig.store()),
        failures_left: Mutex::new(failures),
        running: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_read_in_parallel_and_a_failed_one_is_tried_again() {
    let rig = Rig::new();
    let store = troubled(&rig, 2);
    let (mut loader, _) = rig.open_with(store.clone());
    let fetched = perform(&mut loader, rig.fetch()).await;
    assert!(matches!(fetched, LoadEvent::Fetched { result: Ok(()), .. }));
    let ranges = rig.packed.len().div_ceil(8 << 20);
    assert!(ranges > 2);
    assert_eq!(store.most.load(Ordering::SeqCst), ranges.min(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stays_away_is_named_without_its_address() {
    let rig = Rig::new();
    let (mut loader, _) = rig.open_with(troubled(&rig, usize::MAX));
    assert_eq!(fetch_error(&rig, &mut loader).await, "the object store is not available");
}
