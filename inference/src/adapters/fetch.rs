//! Object store to disk: parallel ranges, verified while they arrive.

use super::disk::DiskCache;
use super::store::{ObjectError, ObjectStore};
use super::{AdapterManifest, CachedFile};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use lorikeet_contract::digest::{CHUNK_BYTES, leaf};
use lorikeet_contract::{ArtifactDigest, ContentDigest};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

/// Bytes of one range: whole leaves of the digest.
const RANGE_BYTES: u64 = 2 * CHUNK_BYTES as u64;
/// Ranges of one adapter in flight.
const RANGES_PER_FETCH: usize = 8;
/// Ranges of all adapters in flight: at most 128 MiB of memory. Further ones wait.
pub(super) const RANGES_IN_FLIGHT: usize = 16;
/// One range must arrive within this.
const RANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts at a range, and the pause before the second; doubled before each further one.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Why an adapter could not be brought to the disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Store(#[from] ObjectError),
    #[error("the stored object ends before byte {0}")]
    TooShort(u64),
    #[error("the stored bytes are not the ones that were verified at upload: digest {actual}")]
    Digest { actual: ArtifactDigest },
    #[error("the node's disk: {0}")]
    Disk(#[from] io::Error),
    #[error("interrupted: {0}")]
    Interrupted(#[from] JoinError),
    #[error("nobody wanted it any more")]
    Cancelled,
}

/// Downloads, verifies, and gives the file its name. Once all bytes are here it is too late to cancel.
pub(super) async fn fetch(
    store: &dyn ObjectStore,
    disk: Arc<DiskCache>,
    manifest: &AdapterManifest,
    in_flight: &Semaphore,
    cancelled: &CancellationToken,
) -> Result<(), FetchError> {
    let bytes = manifest.bytes;
    let incoming = disk.create(bytes)?;
    let file = Arc::new(incoming.file.try_clone()?);
    let leaves = tokio::select! {
        leaves = download(store, manifest, file, in_flight) => leaves?,
        () = cancelled.cancelled() => return Err(FetchError::Cancelled),
    };
    let actual = ContentDigest::from_leaves(leaves.into_iter().flatten(), bytes).into();
    if actual != manifest.artifact_digest {
        return Err(FetchError::Digest { actual });
    }
    let named = CachedFile::of(manifest);
    tokio::task::spawn_blocking(move || disk.keep(incoming, &named)).await??;
    Ok(())
}

/// Writes the object's bytes into the file. Returns the hashes of their leaves, by range.
async fn download(
    store: &dyn ObjectStore,
    manifest: &AdapterManifest,
    file: Arc<File>,
    in_flight: &Semaphore,
) -> Result<Vec<Vec<[u8; 32]>>, FetchError> {
    let written = stream::iter(ranges(manifest.bytes)).map(|range| {
        let file = Arc::clone(&file);
        async move {
            // Never closed: the semaphore lives as long as the loader.
            let _permit = in_flight.acquire().await;
            let data = get(store, &manifest.object_key, range.clone()).await?;
            tokio::task::spawn_blocking(move || write(&file, range.start, &data)).await?
        }
    });
    written.buffered(RANGES_PER_FETCH).try_collect().await
}

fn ranges(bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = (0..bytes).step_by(RANGE_BYTES as usize);
    starts.map(move |start| start..(start + RANGE_BYTES).min(bytes))
}

async fn get(
    store: &dyn ObjectStore,
    object: &str,
    range: Range<u64>,
) -> Result<Bytes, FetchError> {
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let read = tokio::time::timeout(RANGE_TIMEOUT, store.get_range(object, range.clone()));
        let result = read.await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", RANGE_TIMEOUT.as_secs());
            Err(ObjectError::Unavailable { object: object.to_owned(), reason })
        });
        match result {
            Ok(data) if data.len() as u64 == range.end - range.start => return Ok(data),
            Ok(_) => return Err(FetchError::TooShort(range.end)),
            Err(ObjectError::Unavailable { .. }) if attempt < ATTEMPTS => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
        attempt += 1;
    }
}

/// Writes a range and returns the hashes of its leaves.
fn write(file: &File, at: u64, data: &[u8]) -> Result<Vec<[u8; 32]>, FetchError> {
    file.write_all_at(data, at)?;
    Ok(data.chunks(CHUNK_BYTES).map(leaf).collect())
}
