//! The threads that compute masks while the backend runs steps.
//!
//! What has been quick is computed by threads of its own, and never waits for what has been slow. Of what
//! has been slow, whoever has had least comes first.

use super::{GuidanceError, Next, Walker};
use llguidance::CancellationHandle;
use lorikeet_compute::backend::batch::SequenceId;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Half a millisecond of work for each guided row and step is more than a real grammar needs: two
/// threads keep up with a hundred rows. The last thread is for the slow.
const THREADS: usize = 3;
const SLOW: usize = THREADS - 1;
/// A mask that takes longer makes its sequence a slow one, until one takes less.
const QUICK: Duration = Duration::from_millis(4);
/// Of the thread for the slow: it leaves the processors to steps and to other requests.
const NICENESS: i32 = 10;
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
    shared: Arc<Shared>,
    done: Receiver<MaskDone>,
    /// Begun, neither taken back nor ended.
    under_way: usize,
}

#[derive(Default)]
struct Shared {
    lanes: Mutex<Lanes>,
    quick: Condvar,
    slow: Condvar,
}

/// Jobs that wait: at most one of each guided sequence.
#[derive(Default)]
struct Lanes {
    quick: VecDeque<Job>,
    slow: Vec<Job>,
    running: [Option<Running>; THREADS],
    closed: bool,
}

struct Running {
    sequence: SequenceId,
    /// When its walker has used up what it may.
    until: Instant,
    stop: CancellationHandle,
}

impl MaskPool {
    /// `results` may wait to be polled; a thread whose result finds no room waits until one is. Each end
    /// of a job wakes `engine`.
    pub fn start(results: usize, engine: &Thread) -> std::io::Result<Self> {
        let (ends, done) = sync_channel(results);
        let shared = Arc::new(Shared::default());
        // Dropped on an early return, it ends the threads that there are.
        let pool = Self { shared: shared.clone(), done, under_way: 0 };
        for place in 0..THREADS {
            let (shared, ends, engine) = (shared.clone(), ends.clone(), engine.clone());
            let thread = std::thread::Builder::new().name("lk-mask".into()).stack_size(STACK);
            thread.spawn(move || work(&shared, place, &ends, &engine))?;
        }
        Ok(pool)
    }

    /// Begins to compute what may follow `token`.
    pub fn begin(&mut self, sequence: SequenceId, walker: Walker, token: u32) {
        self.under_way += 1;
        let job = Job { sequence, walker, token };
        let mut lanes = self.shared.lanes();
        if job.walker.last() > QUICK {
            lanes.slow.push(job);
            self.shared.slow.notify_one();
        } else {
            lanes.quick.push_back(job);
            self.shared.quick.notify_one();
        }
    }

    /// A sequence has ended: its mask is not needed. One that is being computed ends early, and is polled
    /// like others.
    pub fn forget(&mut self, sequence: SequenceId) {
        if self.under_way == 0 {
            return;
        }
        let mut lanes = self.shared.lanes();
        let waiting = lanes.quick.len() + lanes.slow.len();
        lanes.quick.retain(|job| job.sequence != sequence);
        lanes.slow.retain(|job| job.sequence != sequence);
        self.under_way -= waiting - lanes.quick.len() - lanes.slow.len();
        lanes.running.iter().flatten().filter(|r| r.sequence == sequence).for_each(Running::stop);
    }

    /// Ends what takes longer than it may; it is polled as too complex.
    pub fn end_late(&mut self) {
        if self.under_way > 0 {
            let now = Instant::now();
            let lanes = self.shared.lanes();
            lanes.running.iter().flatten().filter(|r| r.until < now).for_each(Running::stop);
        }
    }

    /// A mask that is there, or will be before `patience` is over.
    pub fn poll(&mut self, patience: Instant) -> Option<MaskDone> {
        if self.under_way == 0 {
            return None;
        }
        let done = self.done.try_recv().ok().or_else(|| {
            let left = patience.saturating_duration_since(Instant::now());
            if left.is_zero() { None } else { self.done.recv_timeout(left).ok() }
        })?;
        self.under_way -= 1;
        Some(done)
    }
}

impl Drop for MaskPool {
    fn drop(&mut self) {
        let mut lanes = self.shared.lanes();
        lanes.closed = true;
        lanes.running.iter().flatten().for_each(Running::stop);
        self.shared.quick.notify_all();
        self.shared.slow.notify_all();
    }
}

impl Running {
    fn stop(&self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's next job, once there is one. None: there will be none any more.
    fn take(&self, place: usize) -> Option<Job> {
        let arrived = if place == SLOW { &self.slow } else { &self.quick };
        let mut lanes = self.lanes();
        lanes.running[place] = None;
        loop {
            if lanes.closed {
                return None;
            }
            let job = if place == SLOW { lanes.least_served() } else { lanes.quick.pop_front() };
            if let Some(job) = job {
                lanes.running[place] = Some(Running {
                    sequence: job.sequence,
                    until: Instant::now() + job.walker.left(),
                    stop: job.walker.stop(),
                });
                return Some(job);
            }
            lanes = arrived.wait(lanes).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Lanes {
    fn least_served(&mut self) -> Option<Job> {
        let jobs = self.slow.iter().enumerate();
        let (at, _) = jobs.min_by_key(|(_, job)| job.walker.spent())?;
        Some(self.slow.swap_remove(at))
    }
}

fn work(shared: &Shared, place: usize, ends: &SyncSender<MaskDone>, engine: &Thread) {
    if place == SLOW
        && let Err(error) = rustix::process::setpriority_process(None, NICENESS)
    {
        tracing::warn!(%error, "slow grammars run with the priority of everything else");
    }
    while let Some(Job { sequence, mut walker, token }) = shared.take(place) {
        let next = walker.advance(token);
        if ends.send(MaskDone { sequence, walker, next }).is_err() {
            return;
        }
        engine.unpark();
    }
}
