//! What the control plane has acknowledged, and since when.

use super::{LogError, segment};
use crate::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

/// Acknowledged segments are kept this long, to be shipped again after a database restore.
pub const KEEP_ACKNOWLEDGED: Duration = Duration::from_secs(7 * 24 * 3600);

pub struct Cursor {
    dir: PathBuf,
    kept: Kept,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Kept {
    /// Everything up to and including this record is in the control plane's database.
    acknowledged: u64,
    /// Segments acknowledged whole, by first sequence number, and when (Unix milliseconds).
    segments: BTreeMap<u64, i64>,
}

impl Cursor {
    pub fn load(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join("cursor.json");
        let kept = match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| LogError::io(&path, e.into()))?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(e) => return Err(LogError::io(&path, e)),
        };
        Ok(Self { dir: dir.to_owned(), kept })
    }

    pub fn acknowledged(&self) -> u64 {
        self.kept.acknowledged
    }

    /// Moves the cursor, backwards too (a restored database knows less), and removes segments that
    /// have been acknowledged for [`KEEP_ACKNOWLEDGED`]. The cursor is on the disk before any
    /// segment goes. The last two stay: the chain goes on from them.
    pub fn set(&mut self, acknowledged: u64, now_unix_ms: i64) -> Result<(), LogError> {
        let segments = segment::list(&self.dir).map_err(|e| LogError::io(&self.dir, e))?;
        let closed: Vec<(u64, u64)> = segments.windows(2).map(|w| (w[0], w[1] - 1)).collect();
        let mut kept = Kept { acknowledged, segments: BTreeMap::new() };
        let mut expired = Vec::new();
        for (index, (first, last)) in closed.iter().enumerate() {
            if *last > acknowledged {
                break;
            }
            let since = *self.kept.segments.get(first).unwrap_or(&now_unix_ms);
            let age_ms = u128::try_from(now_unix_ms - since).unwrap_or(0);
            if age_ms >= KEEP_ACKNOWLEDGED.as_millis() && index + 1 < closed.len() {
                expired.push(segment::path(&self.dir, *first));
            } else {
                kept.segments.insert(*first, since);
            }
        }
        let path = self.dir.join("cursor.json");
        let json = serde_json::to_vec(&kept).map_err(|e| LogError::io(&path, e.into()))?;
        durable::replace(&path, &json).map_err(|e| LogError::io(&path, e))?;
        self.kept = kept;
        for path in expired {
            fs::remove_file(&path).map_err(|e| LogError::io(&path, e))?;
        }
        Ok(())
    }
}
