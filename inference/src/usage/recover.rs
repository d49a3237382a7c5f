//! Reads a log from its first record to its last, and finds what a crash left open.

use super::cursor::Cursor;
use super::{LogError, Position, Recovery, segment};
use lorikeet_contract::link::{UsageKind, UsageRecord};
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

pub struct Recovered {
    pub position: Position,
    /// Requests without a final, with their last progress, in the order of their admission.
    pub open: Vec<UsageRecord>,
    /// The segment to go on with: its first sequence number and its bytes of whole records.
    pub active: Option<(u64, u64)>,
    pub torn_bytes: u64,
}

impl Recovered {
    pub fn summary(&self) -> Recovery {
        Recovery {
            last_seq: self.position.seq,
            crashed_requests: self.open.len(),
            torn_bytes: self.torn_bytes,
        }
    }
}

pub fn recover(dir: &Path) -> Result<Recovered, LogError> {
    let segments = segment::list(dir).map_err(|e| LogError::io(dir, e))?;
    let mut position = match segments.first() {
        None | Some(1) => Some(Position::START),
        Some(_) => None,
    };
    let mut open = OpenRequests::default();
    let mut active = None;
    let mut torn_bytes = 0;
    for (index, first_seq) in segments.iter().enumerate() {
        let path = segment::path(dir, *first_seq);
        let is_last = index + 1 == segments.len();
        let contents = segment::scan(&path, *first_seq, position, is_last, |frame| {
            open.apply(frame.seq, frame.payload)
        })?;
        position = Some(contents.position);
        active = Some((*first_seq, contents.whole));
        torn_bytes = contents.torn;
    }
    let position = position.unwrap_or(Position::START);
    let acknowledged = Cursor::load(dir)?.acknowledged();
    if acknowledged > position.seq {
        return Err(LogError::Missing { end: position.seq, acknowledged });
    }
    Ok(Recovered { position, open: open.by_seq.into_values().collect(), active, torn_bytes })
}

/// Requests without a final, by the sequence number of their `open`.
#[derive(Default)]
struct OpenRequests {
    by_seq: BTreeMap<u64, UsageRecord>,
    seq_of: HashMap<String, u64>,
}

impl OpenRequests {
    fn apply(&mut self, seq: u64, payload: &[u8]) -> Result<(), String> {
        let record = UsageRecord::decode(payload).map_err(|e| e.to_string())?;
        match record.kind() {
            UsageKind::Open => {
                self.seq_of.insert(record.request_id.clone(), seq);
                self.by_seq.insert(seq, record);
            }
            // The `open` may stand in a segment that is no longer kept.
            UsageKind::Progress => {
                let open = *self.seq_of.entry(record.request_id.clone()).or_insert(seq);
                self.by_seq.insert(open, record);
            }
            UsageKind::Final => {
                if let Some(open) = self.seq_of.remove(&record.request_id) {
                    self.by_seq.remove(&open);
                }
            }
            UsageKind::Unspecified => {}
        }
        Ok(())
    }
}
