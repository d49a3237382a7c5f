//! Whose records these are: the same directory is the same log, whatever process opens it.

use super::{LogError, segment};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// So long a start waits for the process before it to let go of the directory: one that was killed
/// keeps its locks until the kernel has taken it apart, which takes a moment with a model in memory.
const PREDECESSOR: Duration = Duration::from_secs(3);

/// A record's identity is this, the node's id and its sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    pub log_id: Uuid,
    pub epoch: u64,
}

/// The lock is released when this is dropped, and by the kernel when the process dies.
pub struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing is not enough: a child between fork and exec holds a copy of the descriptor.
        let _ = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock);
    }
}

/// Blocks for up to [`PREDECESSOR`] while another process holds the directory.
pub fn lock(dir: &Path) -> Result<DirLock, LogError> {
    fs::create_dir_all(dir).map_err(|e| LogError::io(dir, e))?;
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|e| LogError::io(&path, e))?;
    let started = Instant::now();
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(DirLock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() < PREDECESSOR => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LogError::Locked(dir.to_owned())),
            Err(e) => return Err(LogError::io(&path, e.into())),
        }
    }
}

/// Reads the identity; a fresh directory is given one. A fresh log id is unique, so that its first
/// epoch is always 1.
pub fn load_or_create(dir: &Path) -> Result<LogIdentity, LogError> {
    let path = dir.join("identity.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| LogError::io(&path, e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(dir, &path),
        Err(e) => Err(LogError::io(&path, e)),
    }
}

fn create(dir: &Path, path: &Path) -> Result<LogIdentity, LogError> {
    let segments = segment::list(dir).map_err(|e| LogError::io(dir, e))?;
    if !segments.is_empty() {
        return Err(LogError::NoIdentity(dir.to_owned()));
    }
    let identity = LogIdentity { log_id: Uuid::now_v7(), epoch: 1 };
    let json = serde_json::to_vec(&identity).map_err(|e| LogError::io(path, e.into()))?;
    crate::durable::replace(path, &json).map_err(|e| LogError::io(path, e))?;
    Ok(identity)
}
