//! The usage log: what customers are billed by. Nothing lost, nothing twice.
//!
//! ```text
//! DIR/lock            held while a process writes the log
//! DIR/identity.json   log id and epoch, as old as the directory
//! DIR/cursor.json     what the control plane has acknowledged
//! DIR/<seq>.seg       records: open at admission, progress, final
//! ```
//! What holds:
//! - A record is *durable* once fsynced; records are written in groups by one thread. Only durable
//!   records are shipped, at least once; the control plane drops repeats by position.
//! - No token leaves the node before the request's `open` is durable, and no response ends before its
//!   `final` is. Only a `final` is billed.
//! - When the disk refuses a record, new requests are refused and running ones end; their records
//!   stay in memory, in order, until the disk takes them.
//! - After a crash, a request that was open gets `final{crashed}` from its last durable progress, so
//!   at most one progress interval (0.5 s) of each request in flight goes unbilled. A response that was
//!   handed over whole is billed even if the network loses it afterwards: at most one a connection.
//! - A torn tail costs the last record only. Damage anywhere else stops the node, with file and offset.

mod cursor;
mod frame;
mod identity;
mod log;
mod meter;
mod reader;
mod recover;
mod segment;
mod ship;
#[cfg(test)]
mod tests;
mod writer;

pub use identity::LogIdentity;
pub use log::{LogConfig, Recovery, UsageLog};
pub use meter::{Admission, Durable, Meter};
pub use segment::{Disk, FileSystem, SegmentFile};
pub use ship::{ShipError, Shipper};

use lorikeet_contract::usage::CHAIN_START;
use std::io;
use std::path::{Path, PathBuf};

/// A place in the log: after record `seq`, where the chain has this value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    seq: u64,
    chain: [u8; 32],
}

impl Position {
    /// Before the first record, which is number 1.
    const START: Self = Self { seq: 0, chain: CHAIN_START };
}

/// Why the log cannot be opened, or does not take a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("the usage log at {0} is in use by another process")]
    Locked(PathBuf),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: String },
    #[error(
        "the usage log is damaged: {file} at byte {offset}: {what}. Move the directory aside to start a \
         new log, and keep it: its records may not have been billed"
    )]
    Damaged { file: PathBuf, offset: u64, what: String },
    #[error("the usage log at {0} holds records but no identity.json: restore the file")]
    NoIdentity(PathBuf),
    #[error(
        "the usage log ends at record {end}, but record {acknowledged} was acknowledged: records are missing"
    )]
    Missing { end: u64, acknowledged: u64 },
    #[error("the usage log cannot be written at the moment")]
    Unwritable,
    #[error("too many requests are open")]
    Full,
}

impl LogError {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error: error.to_string() }
    }
}
