//! A fixed set of threads that run one job together, in phases.
//!
//! A step has hundreds of phases of a few tens of microseconds: threads meet at a spinning barrier
//! instead of going through a queue for each. Between steps they spin briefly, then sleep.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// Polls before a waiting thread gives its time slice away: about 20 microseconds.
const SPINS_BEFORE_YIELD: u32 = 1 << 11;
/// Polls before an idle worker sleeps: about a millisecond, longer than the gap between two steps.
const SPINS_BEFORE_SLEEP: u32 = 1 << 14;

/// Worker threads; the thread that calls [`Pool::run`] works beside them as thread 0.
pub struct Pool {
    shared: Arc<State>,
    workers: Vec<(Thread, JoinHandle<()>)>,
}

/// One of the threads that run a job.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    pub thread: usize,
    pub threads: usize,
    barrier: &'a Barrier,
}

impl Member<'_> {
    /// Returns when every thread of the job has called it: what they wrote before is then visible.
    pub fn wait(&self) {
        self.barrier.wait(self.threads);
    }

    /// This thread's share of `count` equal pieces, contiguous.
    pub fn share(&self, count: usize) -> std::ops::Range<usize> {
        count * self.thread / self.threads..count * (self.thread + 1) / self.threads
    }
}

/// A thread panicked; the buffers it wrote are in no defined state.
#[derive(Debug, Clone, thiserror::Error)]
#[error("a thread of the step panicked")]
pub struct Panicked;

type Job<'a> = dyn Fn(Member) + Sync + 'a;

struct State {
    threads: usize,
    barrier: Barrier,
    /// Counts jobs; a change starts the workers.
    epoch: AtomicU32,
    /// Set before `epoch` changes, read after.
    job: UnsafeCell<Option<&'static Job<'static>>>,
    /// Workers still inside the job.
    running: AtomicUsize,
    sleeping: Vec<AtomicBool>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no worker runs, and read only after the epoch announced it.
unsafe impl Sync for State {}
// SAFETY: the job it may hold is `Sync`.
unsafe impl Send for State {}

impl Pool {
    /// `threads` including the caller's.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(State {
            threads,
            barrier: Barrier::default(),
            epoch: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            sleeping: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for thread in 1..threads {
            let shared = pool.shared.clone();
            let handle = std::thread::Builder::new()
                .name(format!("lk-cpu-{thread}"))
                .spawn(move || shared.work(thread))?;
            pool.workers.push((handle.thread().clone(), handle));
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `job` on every thread and returns when all have finished.
    pub fn run(&mut self, job: &Job) -> Result<(), Panicked> {
        let shared = &*self.shared;
        if shared.barrier.is_broken() {
            return Err(Panicked);
        }
        // SAFETY: only the lifetime changes; the reference is gone when this function returns,
        // since it waits for every worker to leave the job.
        let job_for_workers = unsafe { std::mem::transmute::<&Job, &'static Job<'static>>(job) };
        // SAFETY: no worker runs: the last call waited for them, and `&mut self` excludes others.
        unsafe { *shared.job.get() = Some(job_for_workers) };
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (sleeping, (worker, _)) in shared.sleeping.iter().zip(&self.workers) {
            if sleeping.swap(false, Ordering::SeqCst) {
                worker.unpark();
            }
        }
        shared.call(0, job);
        spin_until(|| shared.running.load(Ordering::Acquire) == 0);
        if shared.barrier.is_broken() { Err(Panicked) } else { Ok(()) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in self.workers.drain(..) {
            thread.unpark();
            // A worker catches its job's panics; nothing is left to report.
            let _ = handle.join();
        }
    }
}

impl State {
    fn work(&self, thread: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.next_epoch(thread, seen) {
            seen = epoch;
            // SAFETY: the epoch was announced after the job had been written.
            if let Some(job) = unsafe { *self.job.get() } {
                self.call(thread, job);
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }

    fn next_epoch(&self, thread: usize, seen: u32) -> Option<u32> {
        let mut spins = 0;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return Some(epoch);
            }
            spins += 1;
            if spins < SPINS_BEFORE_SLEEP {
                std::hint::spin_loop();
                continue;
            }
            let sleeping = &self.sleeping[thread - 1];
            sleeping.store(true, Ordering::SeqCst);
            // Looks again after saying that it sleeps: either this sees the new epoch, or `run`
            // sees the flag and wakes it.
            if self.epoch.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            sleeping.store(false, Ordering::SeqCst);
        }
    }

    fn call(&self, thread: usize, job: &Job) {
        let member = Member { thread, threads: self.threads, barrier: &self.barrier };
        if catch_unwind(AssertUnwindSafe(|| job(member))).is_err() {
            self.barrier.break_up();
        }
    }
}

/// A barrier that threads can leave when one of them panics.
#[derive(Default)]
struct Barrier {
    arrived: AtomicUsize,
    round: AtomicU32,
    broken: AtomicBool,
}

impl Barrier {
    fn wait(&self, threads: usize) {
        let round = self.round.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
        } else {
            spin_until(|| self.round.load(Ordering::Acquire) != round || self.is_broken());
        }
        assert!(!self.is_broken(), "another thread of the step panicked");
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn break_up(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }
}

fn spin_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        spins += 1;
        if spins < SPINS_BEFORE_YIELD {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_wrote_before_a_barrier_is_seen_by_all_after_it() {
        let mut pool = Pool::new(3).unwrap();
        let cells: Vec<AtomicU32> = (0..3).map(|_| AtomicU32::new(0)).collect();
        for _ in 0..50 {
            let before = cells[0].load(Ordering::Relaxed);
            pool.run(&|member: Member| {
                for round in 1..=20 {
                    cells[member.thread].fetch_add(1, Ordering::Relaxed);
                    member.wait();
                    assert!(cells.iter().all(|c| c.load(Ordering::Relaxed) == before + round));
                    member.wait();
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn a_panicking_thread_ends_the_job_for_all_and_the_pool() {
        for thrower in 0..2 {
            let mut pool = Pool::new(2).unwrap();
            let result = pool.run(&|member: Member| {
                assert!(member.thread != thrower, "planted");
                member.wait();
            });
            assert!(result.is_err());
            assert!(pool.run(&|_| {}).is_err());
        }
    }

    #[test]
    fn sleeping_workers_are_woken() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let ran = AtomicU32::new(0);
            pool.run(&|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(ran.into_inner(), 2);
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        let barrier = Barrier::default();
        for (threads, count) in [(1, 5), (2, 7), (3, 2), (4, 0)] {
            let all: Vec<usize> = (0..threads)
                .flat_map(|thread| Member { thread, threads, barrier: &barrier }.share(count))
                .collect();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }
}
