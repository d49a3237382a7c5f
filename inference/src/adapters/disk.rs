//! The node's disk cache: verified files that survive a restart.
//!
//! ```text
//! files/<tenant>/<adapter digest>.<artifact digest>.lka     whole and verified
//! incoming/<random>                                         half-written; swept at the start
//! ```
//! A file gets its name only after its bytes are verified and on the disk, so a name is a proof.
//! Which files to keep is [`Residency`](super::Residency)'s to decide.

use super::{AdapterKey, CachedFile};
use crate::durable::sync_dir;
use lorikeet_contract::{AdapterDigest, ArtifactDigest, TenantId};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const EXTENSION: &str = ".lka";

#[derive(Debug)]
pub(super) struct DiskCache {
    files: PathBuf,
    incoming: PathBuf,
}

/// A file on its way in. Removed when dropped before it was kept.
pub(super) struct Incoming {
    pub file: File,
    path: PathBuf,
    kept: bool,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is swept at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl DiskCache {
    /// Opens or creates the cache, sweeps half-written files, and lists the whole ones.
    pub fn open(root: &Path) -> io::Result<(Self, Vec<CachedFile>)> {
        let cache = Self { files: root.join("files"), incoming: root.join("incoming") };
        create_dir(&cache.files)?;
        create_dir(&cache.incoming)?;
        for entry in fs::read_dir(&cache.incoming)? {
            fs::remove_file(entry?.path())?;
        }
        let mut found = Vec::new();
        for tenant in fs::read_dir(&cache.files)? {
            let tenant = tenant?;
            for file in fs::read_dir(tenant.path())? {
                let file = file?;
                let names = (tenant.file_name(), file.file_name());
                match parse_names(names.0.to_str(), names.1.to_str(), file.metadata()?.len()) {
                    Some(cached) => found.push(cached),
                    None => tracing::warn!(path = ?file.path(), "unknown file in adapter cache"),
                }
            }
        }
        Ok((cache, found))
    }

    pub fn create(&self, bytes: u64) -> io::Result<Incoming> {
        let path = self.incoming.join(Uuid::new_v4().simple().to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let incoming = Incoming { file, path, kept: false };
        incoming.file.set_len(bytes)?;
        Ok(incoming)
    }

    /// Gives a verified file its name, durably.
    pub fn keep(&self, mut incoming: Incoming, named: &CachedFile) -> io::Result<()> {
        incoming.file.sync_all()?;
        let path = self.path(named);
        let tenant = path.parent().unwrap_or(&self.files);
        if !tenant.is_dir() {
            create_dir(tenant)?;
            sync_dir(&self.files)?;
        }
        fs::rename(&incoming.path, &path)?;
        incoming.kept = true;
        sync_dir(tenant)
    }

    pub fn open_file(&self, named: &CachedFile) -> io::Result<File> {
        File::open(self.path(named))
    }

    /// Removes a file; one that is gone already is no error.
    pub fn remove(&self, named: &CachedFile) -> io::Result<()> {
        match fs::remove_file(self.path(named)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn path(&self, file: &CachedFile) -> PathBuf {
        let tenant = file.key.tenant.as_uuid().simple().to_string();
        let name = format!("{}.{}{EXTENSION}", file.key.digest, file.artifact_digest);
        self.files.join(tenant).join(name)
    }
}

/// Customers' weights are readable by the node alone.
fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn parse_names(tenant: Option<&str>, file: Option<&str>, bytes: u64) -> Option<CachedFile> {
    let tenant = TenantId::from_uuid(Uuid::try_parse(tenant?).ok()?);
    let (digest, artifact) = file?.strip_suffix(EXTENSION)?.split_once('.')?;
    let digest: AdapterDigest = digest.parse().ok()?;
    let artifact_digest: ArtifactDigest = artifact.parse().ok()?;
    Some(CachedFile { key: AdapterKey { tenant, digest }, artifact_digest, bytes })
}
