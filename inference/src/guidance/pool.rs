//! The threads that compute masks while the backend runs steps.

use super::{GuidanceError, Next, Walker};
use lorikeet_compute::backend::batch::SequenceId;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Instant;

/// Half a millisecond of work for each guided row and step is more than a real grammar needs: two
/// threads keep up with a hundred rows.
const THREADS: usize = 2;
/// Derivatives of regular expressions recurse.
const STACK: usize = 16 << 20;

struct Job {
    sequence: SequenceId,
    walker: Walker,
    token: u32,
}

pub struct MaskDone {
    pub sequence: SequenceId,
    pub walker: Walker,
    pub next: Result<Next, GuidanceError>,
}

/// Owned by the engine thread. Its threads end when it is dropped.
pub struct MaskPool {
    jobs: SyncSender<Job>,
    done: Receiver<MaskDone>,
    /// What the engine's thread computed itself: at most one of each guided row.
    own: VecDeque<MaskDone>,
    under_way: usize,
}

impl MaskPool {
    /// `waiting` jobs are queued at most, and as many results: a thread whose result finds no room
    /// waits until the engine takes one. Each end of a job wakes `engine`.
    pub fn start(waiting: usize, engine: &Thread) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(waiting);
        let (ends, done) = sync_channel(waiting);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let (queue, ends, engine) = (Arc::clone(&queue), ends.clone(), engine.clone());
            let thread = std::thread::Builder::new().name("lk-mask".into()).stack_size(STACK);
            thread.spawn(move || work(&queue, &ends, &engine))?;
        }
        Ok(Self { jobs, done, own: VecDeque::new(), under_way: 0 })
    }

    /// Begins to compute what may follow `token`. Where the queue is full, as cancelled sequences can
    /// make it, the caller's thread computes it itself.
    pub fn begin(&mut self, sequence: SequenceId, walker: Walker, token: u32) {
        self.under_way += 1;
        let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
            self.jobs.try_send(Job { sequence, walker, token })
        else {
            return;
        };
        self.own.push_back(run(job));
    }

    /// A mask that is there, or will be before `patience` is over.
    pub fn poll(&mut self, patience: Instant) -> Option<MaskDone> {
        if self.under_way == 0 {
            return None;
        }
        let own = self.own.pop_front();
        let done = own.or_else(|| self.done.try_recv().ok()).or_else(|| {
            let left = patience.saturating_duration_since(Instant::now());
            if left.is_zero() { None } else { self.done.recv_timeout(left).ok() }
        })?;
        self.under_way -= 1;
        Some(done)
    }
}

fn work(queue: &Mutex<Receiver<Job>>, ends: &SyncSender<MaskDone>, engine: &Thread) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if ends.send(run(job)).is_err() {
            return;
        }
        engine.unpark();
    }
}

fn run(job: Job) -> MaskDone {
    let Job { sequence, mut walker, token } = job;
    let next = walker.advance(token);
    MaskDone { sequence, walker, next }
}
