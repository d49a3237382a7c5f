//! Performs what residency decided, beside the running steps: the engine thread starts loads and
//! takes in how they ended, and never waits for I/O.

use super::disk::DiskCache;
use super::fetch::{self, FetchError, RANGES_IN_FLIGHT};
use super::host;
use super::residency::{FetchFailure, LoadAction, ReadFailure};
use super::{AdapterKey, AdapterManifest, CachedFile, ObjectStore};
use futures::FutureExt;
use lorikeet_compute::backend::{HostAdapter, HostAllocator};
use lorikeet_contract::BaseModelSpec;
use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::Thread;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Ended loads that the engine has not taken in yet. When full, tasks wait with theirs.
const COMPLETIONS: usize = 64;

/// How a [`LoadAction`] ended.
pub enum LoadEvent {
    Fetched { key: AdapterKey, result: Result<(), FetchFailure> },
    Read { key: AdapterKey, result: Result<HostAdapter, ReadFailure> },
    Dropped { key: AdapterKey },
}

/// Performs loads. Each action started ends in exactly one event.
pub trait AdapterLoader {
    fn start(&mut self, action: LoadAction);

    /// The adapter's `Fetch` may end without its bytes, and soon.
    fn cancel_fetch(&mut self, key: AdapterKey);

    /// Loads that ended since the last call. Never blocks.
    fn poll(&mut self, events: &mut Vec<LoadEvent>);
}

/// Where adapters come from and where they are kept.
#[derive(Clone)]
pub struct AdapterSource {
    pub store: Arc<dyn ObjectStore>,
    /// Of the disk cache; created when missing.
    pub directory: PathBuf,
    pub runtime: Handle,
}

/// Loads from an object store through a disk cache, on a tokio runtime.
pub struct Loader {
    tasks: Arc<Tasks>,
    runtime: Handle,
    events: mpsc::Receiver<LoadEvent>,
    /// Of the fetches under way.
    cancels: HashMap<AdapterKey, CancellationToken>,
}

struct Tasks {
    store: Arc<dyn ObjectStore>,
    disk: Arc<DiskCache>,
    allocator: Arc<dyn HostAllocator>,
    base: BaseModelSpec,
    ranges: Semaphore,
    events: mpsc::Sender<LoadEvent>,
    /// Woken when a load has ended.
    engine: Thread,
}

impl Loader {
    /// Opens the disk cache and lists what it holds.
    pub fn open(
        source: AdapterSource,
        allocator: Arc<dyn HostAllocator>,
        base: BaseModelSpec,
        engine: Thread,
    ) -> io::Result<(Self, Vec<CachedFile>)> {
        let (disk, found) = DiskCache::open(&source.directory)?;
        let (sender, events) = mpsc::channel(COMPLETIONS);
        let tasks = Arc::new(Tasks {
            store: source.store,
            disk: Arc::new(disk),
            allocator,
            base,
            ranges: Semaphore::new(RANGES_IN_FLIGHT),
            events: sender,
            engine,
        });
        let runtime = source.runtime;
        Ok((Self { tasks, runtime, events, cancels: HashMap::new() }, found))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if let Err(error) = self.tasks.disk.seal() {
            tracing::warn!(%error, "the adapter cache has no index: its files are verified again");
        }
    }
}

impl AdapterLoader for Loader {
    fn start(&mut self, action: LoadAction) {
        let cancelled = CancellationToken::new();
        if let LoadAction::Fetch(manifest) = &action {
            self.cancels.insert(manifest.key, cancelled.clone());
        }
        self.runtime.spawn(Arc::clone(&self.tasks).run(action, cancelled));
    }

    fn cancel_fetch(&mut self, key: AdapterKey) {
        if let Some(cancelled) = self.cancels.get(&key) {
            cancelled.cancel();
        }
    }

    fn poll(&mut self, events: &mut Vec<LoadEvent>) {
        while let Ok(event) = self.events.try_recv() {
            if let LoadEvent::Fetched { key, .. } = &event {
                self.cancels.remove(key);
            }
            events.push(event);
        }
    }
}

impl Tasks {
    async fn run(self: Arc<Self>, action: LoadAction, cancelled: CancellationToken) {
        let performed = AssertUnwindSafe(Arc::clone(&self).perform(action.clone(), cancelled));
        // A load that panics must end too, or those who need the adapter wait for ever.
        let event = performed.catch_unwind().await.unwrap_or_else(|_| panicked(action));
        // A closed channel means that the engine has stopped.
        let _ = self.events.send(event).await;
        self.engine.unpark();
    }

    async fn perform(
        self: Arc<Self>,
        action: LoadAction,
        cancelled: CancellationToken,
    ) -> LoadEvent {
        match action {
            LoadAction::Fetch(manifest) => {
                let result = self.fetch(&manifest, &cancelled).await;
                LoadEvent::Fetched { key: manifest.key, result }
            }
            LoadAction::Read(manifest) => {
                let key = manifest.key;
                LoadEvent::Read { key, result: self.read(manifest).await }
            }
            LoadAction::DropFile(file) => {
                self.drop_file(file).await;
                LoadEvent::Dropped { key: file.key }
            }
        }
    }

    async fn fetch(
        &self,
        manifest: &AdapterManifest,
        cancelled: &CancellationToken,
    ) -> Result<(), FetchFailure> {
        let disk = Arc::clone(&self.disk);
        let result = fetch::fetch(&*self.store, disk, manifest, &self.ranges, cancelled).await;
        result.map_err(|error| match error {
            FetchError::Cancelled => FetchFailure::Cancelled,
            error => {
                tracing::warn!(digest = %manifest.key.digest, ?error, "fetching an adapter failed");
                FetchFailure::Failed(error.to_string())
            }
        })
    }

    async fn read(
        self: Arc<Self>,
        manifest: Arc<AdapterManifest>,
    ) -> Result<HostAdapter, ReadFailure> {
        let digest = manifest.key.digest;
        let read = move || host::read(&self.disk, &manifest, &*self.allocator, &self.base);
        let result = tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
            Err(ReadFailure { reason: format!("interrupted: {error}"), file_lost: false })
        });
        result.inspect_err(|failure| {
            tracing::warn!(%digest, reason = failure.reason, "reading an adapter failed");
        })
    }

    async fn drop_file(self: Arc<Self>, file: CachedFile) {
        let removal = tokio::task::spawn_blocking(move || self.disk.remove(&file)).await;
        if let Err(error) = removal.map_err(io::Error::other).and_then(|removed| removed) {
            tracing::warn!(digest = %file.key.digest, %error, "removing an adapter file failed");
        }
    }
}

fn panicked(action: LoadAction) -> LoadEvent {
    let reason = "loading it failed inside the node".to_owned();
    match action {
        LoadAction::Fetch(m) => {
            let failure = FetchFailure::Failed(reason);
            LoadEvent::Fetched { key: m.key, result: Err(failure) }
        }
        LoadAction::Read(m) => {
            let failure = ReadFailure { reason, file_lost: false };
            LoadEvent::Read { key: m.key, result: Err(failure) }
        }
        LoadAction::DropFile(file) => LoadEvent::Dropped { key: file.key },
    }
}

#[cfg(test)]
mod tests;
