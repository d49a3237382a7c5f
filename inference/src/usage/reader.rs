//! Reads durable records for shipping, segment after segment.

use super::frame::{self, HEADER_BYTES, MAX_PAYLOAD_BYTES};
use super::{LogError, segment};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A batch ends at this many records or bytes, whichever comes first.
const MAX_BATCH_RECORDS: usize = 1024;
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Consecutive payloads, and the chain value before the first.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    pub first_seq: u64,
    pub prev_hash: [u8; 32],
    pub payloads: Vec<Vec<u8>>,
}

/// Remembers where the last batch ended, so that a log is read once.
pub struct Reader {
    dir: PathBuf,
    /// `(sequence number, segment, offset)` of the record after the last batch.
    next: Option<(u64, u64, u64)>,
}

impl Reader {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), next: None }
    }

    /// The records from `first_seq` on, up to `durable_seq` and the batch limits; never empty.
    /// Requires `first_seq <= durable_seq`. Fails when the segment is no longer kept.
    pub fn batch(&mut self, first_seq: u64, durable_seq: u64) -> Result<Batch, LogError> {
        let (mut segment_seq, mut offset) = match self.next {
            Some((seq, segment, offset)) if seq == first_seq => (segment, offset),
            _ => (self.segment_of(first_seq)?, 0),
        };
        let mut batch = Batch { first_seq, prev_hash: [0; 32], payloads: Vec::new() };
        loop {
            let path = segment::path(&self.dir, segment_seq);
            let bytes = read_from(&path, offset).map_err(|e| LogError::io(&path, e))?;
            let mut at = 0;
            let mut expected = None;
            while let Some(frame) = frame::read(&bytes[at..]) {
                if frame.seq > durable_seq || batch.payloads.len() == MAX_BATCH_RECORDS {
                    break;
                }
                if frame.seq >= first_seq {
                    if batch.payloads.is_empty() {
                        batch.prev_hash = frame.prev_hash;
                    }
                    batch.payloads.push(frame.payload.to_vec());
                }
                at += frame.len();
                expected = Some(frame.seq + 1);
            }
            offset += at as u64;
            if let (false, Some(next)) = (batch.payloads.is_empty(), expected) {
                self.next = Some((next, segment_seq, offset));
                return Ok(batch);
            }
            if at > 0 {
                continue;
            }
            // The end of a segment: the next is named after the record wanted.
            if segment_seq == first_seq || !segment::path(&self.dir, first_seq).exists() {
                let what = format!("record {first_seq} does not read");
                return Err(LogError::Damaged { file: path, offset, what });
            }
            (segment_seq, offset) = (first_seq, 0);
        }
    }

    fn segment_of(&self, seq: u64) -> Result<u64, LogError> {
        let segments = segment::list(&self.dir).map_err(|e| LogError::io(&self.dir, e))?;
        segments.into_iter().rev().find(|first| *first <= seq).ok_or_else(|| LogError::Damaged {
            file: self.dir.clone(),
            offset: 0,
            what: format!("the segment of record {seq} is no longer kept"),
        })
    }
}

/// At most a batch's worth of bytes, and always a whole record where there is one.
fn read_from(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    let limit = MAX_BATCH_BYTES + HEADER_BYTES + MAX_PAYLOAD_BYTES;
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
