//! The log as the rest of the node sees it.

use super::LogError;
use super::identity::{self, DirLock, LogIdentity};
use super::meter::{Admission, Counts, Durable, Meter};
use super::recover::recover;
use super::segment::{Disk, FileSystem};
use super::writer::{Command, Writer};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot, watch};

#[derive(Clone)]
pub struct LogConfig {
    /// Requests open at once. A request past it is refused, and the writer's queue, which holds at
    /// most an `open` and a `final` of each, never fills.
    pub max_open: usize,
    /// A new segment is begun at this size.
    pub segment_bytes: u64,
    /// Between progress records of a request whose count has changed.
    pub progress_every: Duration,
    /// After the disk has refused a write, until the next attempt.
    pub retry_every: Duration,
    pub disk: Arc<dyn Disk>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            max_open: 4096,
            segment_bytes: 8 << 20,
            progress_every: Duration::from_millis(500),
            retry_every: Duration::from_secs(1),
            disk: Arc::new(FileSystem),
        }
    }
}

/// What opening the log found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// Sequence number of the last record, recovery's own included.
    pub last_seq: u64,
    /// Requests that a crash had left open.
    pub crashed_requests: usize,
    /// Bytes of a record that was being written when the process died.
    pub torn_bytes: u64,
}

/// An open log. It is closed by [`UsageLog::close`], after the last [`Meter`] is gone, and let go by
/// [`UsageLog::release`], after the last record has been shipped.
pub struct UsageLog {
    dir: PathBuf,
    identity: LogIdentity,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<DirLock>>,
    /// The last record that the control plane has, as far as is known here.
    acknowledged: AtomicU64,
}

/// What meters, handle and writer have in common.
pub(super) struct Shared {
    commands: SyncSender<Command>,
    admissions: Arc<Semaphore>,
    writable: Arc<AtomicBool>,
    durable_seq: watch::Receiver<u64>,
}

impl Shared {
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Never blocks: the queue has room for every command that can exist.
    pub fn send(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            tracing::error!("the usage log is closed: a record of a request was not written");
        }
    }
}

impl UsageLog {
    /// Locks the directory, checks every record in it, closes what a crash left open, and starts the
    /// writer. Blocks on the disk.
    pub fn open(dir: &Path, config: LogConfig) -> Result<(Self, Recovery), LogError> {
        let lock = identity::lock(dir)?;
        let identity = identity::load_or_create(dir)?;
        let recovered = recover(dir)?;
        let recovery = recovered.summary();

        let (commands, queue) = sync_channel(2 * config.max_open + 1);
        let (durable, durable_seq) = watch::channel(recovered.position.seq);
        let writable = Arc::new(AtomicBool::new(true));
        let admissions = Arc::new(Semaphore::new(config.max_open));
        let writer = Writer::new(dir, config, recovered, durable, writable.clone())?;
        let last_seq = *durable_seq.borrow();
        let thread = std::thread::Builder::new()
            .name("usage-log".into())
            .spawn(move || writer.run(&queue))
            .map_err(|e| LogError::io(dir, e))?;
        let log = Self {
            dir: dir.to_owned(),
            identity,
            shared: Arc::new(Shared { commands, admissions, writable, durable_seq }),
            writer: Mutex::new(Some(thread)),
            lock: Mutex::new(Some(lock)),
            acknowledged: AtomicU64::new(0),
        };
        Ok((log, Recovery { last_seq, ..recovery }))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn identity(&self) -> LogIdentity {
        self.identity
    }

    /// False while the disk refuses records.
    pub fn is_writable(&self) -> bool {
        self.shared.is_writable()
    }

    /// Follows the last record on the disk.
    pub fn durable_seq(&self) -> watch::Receiver<u64> {
        self.shared.durable_seq.clone()
    }

    pub(super) fn note_acknowledged(&self, seq: u64) {
        self.acknowledged.store(seq, Ordering::Relaxed);
    }

    /// Records on the disk that the control plane has not acknowledged.
    pub fn unshipped(&self) -> u64 {
        let durable = *self.shared.durable_seq.borrow();
        durable.saturating_sub(self.acknowledged.load(Ordering::Relaxed))
    }

    /// Opens a request's account. Its first token may leave the node once the `Durable` has resolved.
    pub fn admit(&self, admission: &Admission) -> Result<(Meter, Durable), LogError> {
        if !self.is_writable() {
            return Err(LogError::Unwritable);
        }
        let permit =
            self.shared.admissions.clone().try_acquire_owned().map_err(|_| LogError::Full)?;
        let record = admission.open_record();
        let counts = Arc::new(Counts::default());
        let (done, durable) = oneshot::channel();
        self.shared.send(Command::Open { record: record.clone(), counts: counts.clone(), done });
        Ok((Meter::new(record, counts, self.shared.clone(), permit), Durable(durable)))
    }

    /// Writes everything queued and stops the writer. Blocks on the disk.
    pub fn close(&self) {
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        self.shared.send(Command::Close);
        if thread.join().is_err() {
            tracing::error!("the usage log's writer panicked");
        }
    }

    /// Lets another process have the directory: at this moment, and not whenever the last handle to
    /// the log happens to go.
    pub fn release(&self) {
        self.close();
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for UsageLog {
    fn drop(&mut self) {
        self.release();
    }
}
