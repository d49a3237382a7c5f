//! What the disk cache held when the node last stopped in order. A file that is still as it was then
//! is believed; any other, and after a crash each one, is verified before it is used.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const HEADER: &str = "lorikeet adapter index 1";

/// Length in bytes and time of the last change, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    changed: i128,
}

impl Stamp {
    /// Of the inode's change, which setting a modification time does not hide.
    pub fn of(metadata: &Metadata) -> Self {
        let changed = i128::from(metadata.ctime()) * 1_000_000_000;
        Self { bytes: metadata.len(), changed: changed + i128::from(metadata.ctime_nsec()) }
    }
}

/// Stamps by path below the cache's files.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<String, Stamp>);

impl Index {
    /// Reads the index and removes it, so that there is none after a crash. One that does not read
    /// counts as missing.
    pub fn take(path: &Path) -> io::Result<Self> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        fs::remove_file(path)?;
        let text = String::from_utf8(text).unwrap_or_default();
        Ok(parse(&text).unwrap_or_default())
    }

    pub fn insert(&mut self, path: String, stamp: Stamp) {
        self.0.insert(path, stamp);
    }

    pub fn knows(&self, path: &str, stamp: Stamp) -> bool {
        self.0.get(path) == Some(&stamp)
    }

    /// Writes it whole or not at all.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut text = format!("{HEADER}\n");
        for (file, Stamp { bytes, changed }) in &self.0 {
            text += &format!("{bytes} {changed} {file}\n");
        }
        // Says that no line is missing.
        text += &format!("{}\n", self.0.len());
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    }
}

fn parse(text: &str) -> Option<Index> {
    let (body, count) = text.strip_prefix(HEADER)?.trim().rsplit_once('\n').unwrap_or(("", "0"));
    let mut index = Index::default();
    for line in body.lines() {
        let mut parts = line.splitn(3, ' ');
        let stamp =
            Stamp { bytes: parts.next()?.parse().ok()?, changed: parts.next()?.parse().ok()? };
        index.insert(parts.next()?.to_owned(), stamp);
    }
    (count.parse() == Ok(index.0.len())).then_some(index)
}
