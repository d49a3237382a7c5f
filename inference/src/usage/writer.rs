//! The thread that owns the end of the log. It writes whatever has queued up while the last group was
//! being fsynced, so the load sets the size of a group and a lone record waits for nobody.

use super::log::LogConfig;
use super::meter::{Counts, finalize};
use super::recover::Recovered;
use super::segment::{self, SegmentFile};
use super::{LogError, Position, frame};
use crate::durable::unix_ms;
use lorikeet_contract::link::{FinishReason, UsageKind, UsageRecord};
use lorikeet_contract::usage::chain;
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

pub enum Command {
    Open { record: UsageRecord, counts: Arc<Counts>, done: oneshot::Sender<()> },
    Final { record: UsageRecord, done: oneshot::Sender<()>, permit: OwnedSemaphorePermit },
    Close,
}

/// A request whose final has not come yet.
struct Live {
    record: UsageRecord,
    counts: Arc<Counts>,
}

pub struct Writer {
    dir: PathBuf,
    config: LogConfig,
    /// After the last record, durable or pending.
    position: Position,
    live: BTreeMap<String, Live>,
    segment: Option<Segment>,
    /// Encoded records that are not durable yet, in order.
    pending: Vec<u8>,
    /// Whoever waits for them.
    waiting: Vec<oneshot::Sender<()>>,
    retry_at: Option<Instant>,
    durable: watch::Sender<u64>,
    writable: Arc<AtomicBool>,
}

struct Segment {
    file: Box<dyn SegmentFile>,
    /// Bytes of durable records. What lies after them was written by a failed attempt.
    durable_bytes: u64,
}

impl Writer {
    /// Goes on after `recovered`, once the requests that a crash left open are closed and durable.
    pub fn new(
        dir: &Path,
        config: LogConfig,
        recovered: Recovered,
        durable: watch::Sender<u64>,
        writable: Arc<AtomicBool>,
    ) -> Result<Self, LogError> {
        let mut writer = Self {
            dir: dir.to_owned(),
            config,
            position: recovered.position,
            live: BTreeMap::new(),
            segment: None,
            pending: Vec::new(),
            waiting: Vec::new(),
            retry_at: None,
            durable,
            writable,
        };
        if let Some((first_seq, whole)) = recovered.active {
            let path = segment::path(dir, first_seq);
            let resume = || {
                let mut file = writer.config.disk.open(&path)?;
                file.truncate(whole)?;
                file.sync()?;
                Ok(Segment { file, durable_bytes: whole })
            };
            writer.segment = Some(resume().map_err(|e| LogError::io(&path, e))?);
        }
        for mut record in recovered.open {
            let last_known = record.ended_unix_ms;
            finalize(&mut record, FinishReason::Crashed, last_known);
            writer.append(record);
        }
        writer.write_pending().map_err(|e| LogError::io(dir, e))?;
        Ok(writer)
    }

    pub fn run(mut self, queue: &Receiver<Command>) {
        let mut next_progress = Instant::now() + self.config.progress_every;
        let mut closing = false;
        while !closing {
            let wait = next_progress.saturating_duration_since(Instant::now());
            match queue.recv_timeout(wait) {
                Ok(command) => closing = self.take(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => closing = true,
            }
            while let Ok(command) = queue.try_recv() {
                closing |= self.take(command);
            }
            if Instant::now() >= next_progress {
                self.append_progress();
                next_progress = Instant::now() + self.config.progress_every;
            }
            self.commit(closing);
        }
        if !self.pending.is_empty() {
            tracing::error!(
                dir = %self.dir.display(), bytes = self.pending.len(),
                "the node stops while its disk refuses usage records: these records are lost"
            );
        }
    }

    /// True when the log is to be closed.
    fn take(&mut self, command: Command) -> bool {
        match command {
            Command::Open { record, counts, done } => {
                let live = Live { record: record.clone(), counts };
                self.live.insert(record.request_id.clone(), live);
                self.append(record);
                self.await_durable(done);
                false
            }
            Command::Final { record, done, permit } => {
                self.live.remove(&record.request_id);
                self.append(record);
                self.await_durable(done);
                drop(permit);
                false
            }
            Command::Close => true,
        }
    }

    /// While the disk refuses records nobody is kept waiting: dropping the sender says so.
    fn await_durable(&mut self, done: oneshot::Sender<()>) {
        if self.retry_at.is_none() {
            self.waiting.push(done);
        }
    }

    /// Counts are cumulative, so a round skipped while the disk refuses records loses nothing.
    fn append_progress(&mut self) {
        if self.retry_at.is_some() {
            return;
        }
        let mut changed = Vec::new();
        for live in self.live.values_mut() {
            let before = live.record.completion_tokens;
            live.counts.write_to(&mut live.record);
            if live.record.completion_tokens != before {
                live.record.kind = UsageKind::Progress as i32;
                live.record.ended_unix_ms = unix_ms();
                changed.push(live.record.clone());
            }
        }
        for record in changed {
            self.append(record);
        }
    }

    fn append(&mut self, mut record: UsageRecord) {
        let seq = self.position.seq + 1;
        let prev_hash = self.position.chain;
        record.seq = seq;
        let payload = record.encode_to_vec();
        frame::append(&mut self.pending, frame::Frame { seq, prev_hash, payload: &payload });
        self.position = Position { seq, chain: chain(&prev_hash, &payload) };
    }

    fn commit(&mut self, now_or_never: bool) {
        if self.pending.is_empty() {
            return;
        }
        if self.retry_at.is_some_and(|at| Instant::now() < at) && !now_or_never {
            return;
        }
        match self.write_pending() {
            Ok(()) => {
                if self.retry_at.take().is_some() {
                    tracing::info!(dir = %self.dir.display(), "usage records are written again");
                }
                self.writable.store(true, Ordering::Release);
                for done in self.waiting.drain(..) {
                    let _ = done.send(());
                }
            }
            Err(error) => {
                if self.retry_at.is_none() {
                    tracing::error!(
                        dir = %self.dir.display(), %error,
                        "usage records cannot be written: requests are refused until they can"
                    );
                }
                self.writable.store(false, Ordering::Release);
                self.waiting.clear();
                self.retry_at = Some(Instant::now() + self.config.retry_every);
            }
        }
    }

    /// Writes and fsyncs everything pending. After an error the attempt is repeated from the last
    /// durable byte: what a failed fsync left of the pages is not known.
    fn write_pending(&mut self) -> io::Result<()> {
        let Some(first) = frame::read(&self.pending) else { return Ok(()) };
        let full =
            self.segment.as_ref().is_some_and(|s| s.durable_bytes >= self.config.segment_bytes);
        if full {
            self.segment = None;
        }
        if self.segment.is_none() {
            let file = self.config.disk.open(&segment::path(&self.dir, first.seq))?;
            self.segment = Some(Segment { file, durable_bytes: 0 });
        }
        let segment = self.segment.as_mut().expect("opened above");
        segment.file.truncate(segment.durable_bytes)?;
        segment.file.append(&self.pending)?;
        segment.file.sync()?;
        segment.durable_bytes += self.pending.len() as u64;
        self.pending.clear();
        self.durable.send_replace(self.position.seq);
        Ok(())
    }
}
