//! The files of a log: `<first seq, 20 digits>.seg`, each written to the end and then left alone.

use super::frame::{self, Frame};
use super::{LogError, Position};
use lorikeet_contract::usage::chain;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Segments of a directory by their first sequence number, ascending.
pub fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let first_seq = name.to_str().and_then(|n| n.strip_suffix(".seg"));
        segments.extend(first_seq.and_then(|n| n.parse::<u64>().ok()));
    }
    segments.sort_unstable();
    Ok(segments)
}

pub fn path(dir: &Path, first_seq: u64) -> PathBuf {
    dir.join(format!("{first_seq:020}.seg"))
}

/// What a segment's bytes hold from its start.
pub struct Contents {
    /// After the last whole record.
    pub position: Position,
    /// Bytes of whole records.
    pub whole: u64,
    /// Bytes after them that a crash left of the last write.
    pub torn: u64,
}

/// Reads a segment record by record. `before` is the position that its first record continues; None
/// for the oldest segment kept, whose first record says so itself. Only the last segment may end torn.
pub fn scan(
    path: &Path,
    first_seq: u64,
    before: Option<Position>,
    is_last: bool,
    mut visit: impl FnMut(Frame<'_>) -> Result<(), String>,
) -> Result<Contents, LogError> {
    let bytes = fs::read(path).map_err(|e| LogError::io(path, e))?;
    let damaged = |offset: usize, what: String| LogError::Damaged {
        file: path.to_owned(),
        offset: offset as u64,
        what,
    };
    let mut at = 0;
    let mut position = before;
    while let Some(frame) = frame::read(&bytes[at..]) {
        let expected = position.map_or(first_seq, |p| p.seq + 1);
        if frame.seq != expected {
            return Err(damaged(at, format!("record {} where {expected} belongs", frame.seq)));
        }
        if position.is_some_and(|p| p.chain != frame.prev_hash) {
            return Err(damaged(at, format!("record {} does not continue the chain", frame.seq)));
        }
        visit(frame).map_err(|what| damaged(at, what))?;
        position = Some(Position { seq: frame.seq, chain: chain(&frame.prev_hash, frame.payload) });
        at += frame.len();
    }
    let rest = &bytes[at..];
    let torn = is_last && frame::is_torn_tail(rest);
    if !torn && !rest.is_empty() {
        return Err(damaged(at, "bytes that are no record, before the end of the log".into()));
    }
    let Some(position) = position else {
        return Err(damaged(0, "no record, and no segment before it".into()));
    };
    Ok(Contents { position, whole: at as u64, torn: rest.len() as u64 })
}

/// Where segments are written: the file system, or a test's disk that fills up.
pub trait Disk: Send + Sync {
    /// Opens a segment for appending, created if need be.
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;
}

/// An append-only file.
pub trait SegmentFile: Send {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Returns when everything appended is on the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts off what lies after `len` bytes.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// The ordinary file system.
pub struct FileSystem;

impl Disk for FileSystem {
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.seek(SeekFrom::End(0))?;
        crate::durable::sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Box::new(file))
    }
}

impl SegmentFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.seek(SeekFrom::Start(len)).map(drop)
    }
}
