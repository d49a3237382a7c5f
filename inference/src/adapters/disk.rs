//! The node's disk cache: verified files that survive a restart.
//!
//! ```text
//! files/<tenant>/<adapter digest>.<artifact digest>.lka     whole and verified
//! incoming/<random>                                         half-written; swept at the start
//! index                                                     written by an orderly stop
//! aside/                                                    what did not belong here
//! ```
//! A file gets its name only after its bytes are verified and on the disk. One that is not as the
//! index has it is suspect: after a crash, when somebody has touched it, when the index is damaged.
//! A suspect file is verified again before its first use. Which files to keep is [`Residency`](super::Residency)'s to decide.

use super::index::{Index, Stamp};
use super::{AdapterKey, CachedFile};
use crate::durable::sync_dir;
use lorikeet_contract::{AdapterDigest, ArtifactDigest, TenantId};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

const EXTENSION: &str = ".lka";

#[derive(Debug)]
pub(super) struct DiskCache {
    root: PathBuf,
    files: PathBuf,
    incoming: PathBuf,
    /// Found at the start and not verified since.
    suspects: Mutex<HashSet<CachedFile>>,
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
    /// Opens or creates the cache, sweeps half-written files, sets aside what does not belong, and
    /// lists the whole files.
    pub fn open(root: &Path) -> io::Result<(Self, Vec<CachedFile>)> {
        let cache = Self {
            root: root.to_owned(),
            files: root.join("files"),
            incoming: root.join("incoming"),
            suspects: Mutex::default(),
        };
        create_dir(&cache.files)?;
        create_dir(&cache.incoming)?;
        for entry in fs::read_dir(&cache.incoming)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => cache.set_aside(&entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        let index = Index::take(&cache.index())?;
        let listed = cache.list()?;
        let suspects = listed.iter().filter(|(name, stamp, _)| !index.knows(name, *stamp));
        let suspects: HashSet<_> = suspects.map(|(_, _, file)| *file).collect();
        if !suspects.is_empty() {
            let files = suspects.len();
            tracing::warn!(
                files,
                "adapter files are verified again: the node did not stop in order"
            );
        }
        *cache.suspects() = suspects;
        Ok((cache, listed.into_iter().map(|(_, _, file)| file).collect()))
    }

    /// Names below `files`, and what they name. Anything else is set aside.
    fn list(&self) -> io::Result<Vec<(String, Stamp, CachedFile)>> {
        let mut listed = Vec::new();
        for tenant in fs::read_dir(&self.files)? {
            let tenant = tenant?;
            if !tenant.file_type()?.is_dir() {
                self.set_aside(&tenant.path())?;
                continue;
            }
            for file in fs::read_dir(tenant.path())? {
                let file = file?;
                let names = (tenant.file_name(), file.file_name());
                let (Some(of), Some(name)) = (names.0.to_str(), names.1.to_str()) else {
                    self.set_aside(&file.path())?;
                    continue;
                };
                let metadata = file.metadata()?;
                match parse_names(of, name, metadata.len()).filter(|_| metadata.is_file()) {
                    Some(cached) => {
                        listed.push((format!("{of}/{name}"), Stamp::of(&metadata), cached));
                    }
                    None => self.set_aside(&file.path())?,
                }
            }
        }
        Ok(listed)
    }

    fn set_aside(&self, path: &Path) -> io::Result<()> {
        let aside = self.root.join("aside");
        create_dir(&aside)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = aside.join(format!("{name}.{}", Uuid::new_v4().simple()));
        tracing::warn!(?path, ?to, "set aside what does not belong into the adapter cache");
        fs::rename(path, to)
    }

    /// Writes the index, so that the next start believes the files that are verified now.
    pub fn seal(&self) -> io::Result<()> {
        let mut index = Index::default();
        for (name, stamp, file) in self.list()? {
            if !self.is_suspect(&file) {
                index.insert(name, stamp);
            }
        }
        index.save(&self.index())
    }

    fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    fn suspects(&self) -> MutexGuard<'_, HashSet<CachedFile>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its bytes must be verified before they are used.
    pub fn is_suspect(&self, file: &CachedFile) -> bool {
        self.suspects().contains(file)
    }

    /// Its bytes have been verified, or are gone.
    pub fn trust(&self, file: &CachedFile) {
        self.suspects().remove(file);
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
        self.trust(named);
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

fn parse_names(tenant: &str, file: &str, bytes: u64) -> Option<CachedFile> {
    let tenant = TenantId::from_uuid(Uuid::try_parse(tenant).ok()?);
    let (digest, artifact) = file.strip_suffix(EXTENSION)?.split_once('.')?;
    let digest: AdapterDigest = digest.parse().ok()?;
    let artifact_digest: ArtifactDigest = artifact.parse().ok()?;
    Some(CachedFile { key: AdapterKey { tenant, digest }, artifact_digest, bytes })
}
