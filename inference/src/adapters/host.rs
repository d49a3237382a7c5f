//! Disk to host memory.

use super::disk::DiskCache;
use super::residency::ReadFailure;
use super::{AdapterManifest, CachedFile};
use lorikeet_compute::backend::{HostAdapter, HostAllocator, HostData};
use lorikeet_contract::adapter::ArtifactHeader;
use lorikeet_contract::digest::{CHUNK_BYTES, leaf};
use lorikeet_contract::{ArtifactDigest, BaseModelSpec, ContentDigest};
use std::io::{ErrorKind, Read};

/// Reads a cached file into memory of the backend's choice, checks that it fits the base model, and
/// gives it the backend's form. The caller has reserved the bytes. A suspect file is verified first; one that is not what
/// it was is removed.
pub(super) fn read(
    disk: &DiskCache,
    manifest: &AdapterManifest,
    allocator: &dyn HostAllocator,
    base: &BaseModelSpec,
) -> Result<HostAdapter, ReadFailure> {
    let named = CachedFile::of(manifest);
    let failed = |reason: String| ReadFailure { reason, file_lost: false };
    let lost = |reason: &str| {
        tracing::warn!(digest = %manifest.key.digest, reason, "adapter file is lost");
        // What cannot be removed is replaced by the next fetch.
        let _ = disk.remove(&named);
        disk.trust(&named);
        ReadFailure { reason: reason.to_owned(), file_lost: true }
    };
    let mut file = match disk.open_file(&named) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(lost("the file is gone")),
        Err(e) => return Err(failed(format!("the node's disk: {e}"))),
    };
    let len = file.metadata().map_err(|e| failed(format!("the node's disk: {e}")))?.len();
    if len != manifest.bytes {
        return Err(lost("the file has another length than it had"));
    }
    let size = usize::try_from(len).map_err(|e| failed(e.to_string()))?;
    let mut data = allocator.allocate(size).map_err(|e| failed(e.to_string()))?;
    file.read_exact(data.as_mut_slice()).map_err(|e| failed(format!("the node's disk: {e}")))?;

    if disk.is_suspect(&named) {
        if digest(data.as_slice()) != manifest.artifact_digest {
            return Err(lost("the file's bytes have changed on the disk"));
        }
        disk.trust(&named);
    }
    let header = match header(data.as_slice(), manifest, base) {
        Ok(header) => header,
        // Its digest was right when it came. If it still is, the artifact itself is at fault.
        Err(reason) if digest(data.as_slice()) == manifest.artifact_digest => {
            return Err(failed(reason));
        }
        Err(_) => return Err(lost("the file's bytes have changed on the disk")),
    };
    let adapter = HostAdapter { key: manifest.key, header, data: HostData::File(data) };
    allocator.prepare(adapter).map_err(|e| failed(e.to_string()))
}

fn header(
    data: &[u8],
    manifest: &AdapterManifest,
    base: &BaseModelSpec,
) -> Result<ArtifactHeader, String> {
    let header =
        ArtifactHeader::parse(data, data.len() as u64).map_err(|error| error.to_string())?;
    header.check_fits(base).map_err(|error| error.to_string())?;
    if header.adapter_digest != manifest.key.digest {
        let found = header.adapter_digest.short();
        return Err(format!("the artifact is of another adapter: digest {found}"));
    }
    if header.max_rank() != manifest.max_rank {
        let (found, said) = (header.max_rank(), manifest.max_rank);
        return Err(format!("the artifact has rank {found}, its manifest says {said}"));
    }
    Ok(header)
}

/// In parallel: somebody waits, and it is not done on every load.
fn digest(data: &[u8]) -> ArtifactDigest {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let chunks: Vec<&[u8]> = data.chunks(CHUNK_BYTES).collect();
    let share = chunks.len().div_ceil(threads).max(1);
    let leaves: Vec<[u8; 32]> = std::thread::scope(|scope| {
        let hashing: Vec<_> = chunks
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(|c| leaf(c)).collect::<Vec<_>>()))
            .collect();
        hashing.into_iter().flat_map(|h| h.join().expect("hashing does not panic")).collect()
    });
    ContentDigest::from_leaves(leaves, data.len() as u64).into()
}
