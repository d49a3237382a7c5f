//! The thread that places adapters on a device beside the running steps.

use super::slots::refused;
use super::{AdapterSlot, BackendError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Adapters waiting to be placed. When full, an upload must be begun again later.
const QUEUE: usize = 64;

/// Takes jobs `J` in order and gives back what became of each.
pub struct Uploads<J, R> {
    jobs: Option<SyncSender<(AdapterSlot, J)>>,
    placed: Receiver<Placed<R>>,
    worker: Option<JoinHandle<()>>,
}

pub struct Placed<R> {
    pub slot: AdapterSlot,
    pub result: Result<R, BackendError>,
}

impl<J: Send + 'static, R: Send + 'static> Uploads<J, R> {
    /// A panic in `place` is an error of its adapter alone.
    pub fn spawn(
        thread: &str,
        mut place: impl FnMut(J) -> Result<R, BackendError> + Send + 'static,
    ) -> Result<Self, BackendError> {
        let (jobs, queue) = sync_channel::<(AdapterSlot, J)>(QUEUE);
        // When full, the worker waits for the engine's next poll.
        let (done, placed) = sync_channel(QUEUE);
        let work = move || {
            for (slot, job) in queue {
                let result = catch_unwind(AssertUnwindSafe(|| place(job)));
                let panicked = || BackendError::Adapter("placing it failed unexpectedly".into());
                let result = result.unwrap_or_else(|_| Err(panicked()));
                if done.send(Placed { slot, result }).is_err() {
                    return;
                }
            }
        };
        let worker = std::thread::Builder::new()
            .name(thread.into())
            .spawn(work)
            .map_err(|e| BackendError::Device(format!("the upload thread does not start: {e}")))?;
        Ok(Self { jobs: Some(jobs), placed, worker: Some(worker) })
    }

    /// `bytes` are the adapter's, for the error when too many wait.
    pub fn send(&self, slot: AdapterSlot, job: J, bytes: u64) -> Result<(), BackendError> {
        let Some(jobs) = &self.jobs else { return Err(refused(slot, "cannot be filled any more")) };
        jobs.try_send((slot, job)).map_err(|error| match error {
            TrySendError::Full(_) => BackendError::NoRoomYet { bytes },
            TrySendError::Disconnected(_) => BackendError::Device("the upload thread ended".into()),
        })
    }

    /// The next adapter that has been placed, if one has. Never waits.
    pub fn next_placed(&self) -> Option<Placed<R>> {
        self.placed.try_recv().ok()
    }
}

impl<J, R> Drop for Uploads<J, R> {
    fn drop(&mut self) {
        // Closing both channels ends the worker after the adapter that it is placing.
        self.jobs = None;
        let (_, closed) = sync_channel(0);
        self.placed = closed;
        if let Some(worker) = self.worker.take() {
            // A panic while placing was caught and reported as that upload's result.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(index: u32) -> AdapterSlot {
        AdapterSlot { index, generation: 1 }
    }

    fn wait<J: Send + 'static, R: Send + 'static>(uploads: &Uploads<J, R>) -> Placed<R> {
        loop {
            if let Some(placed) = uploads.next_placed() {
                return placed;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_full_queue_asks_to_come_back_later() {
        let (go, wait_for) = sync_channel::<()>(0);
        let held = move |()| {
            // The closed channel lets all others pass.
            let _ = wait_for.recv();
            Ok(())
        };
        let uploads = Uploads::spawn("lk-test-upload", held).unwrap();
        // The worker holds one more than the queue.
        let mut sent = 0;
        let refused = loop {
            match uploads.send(slot(sent), (), 7) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, BackendError::NoRoomYet { bytes: 7 }), "{refused}");
        assert!((QUEUE as u32..=QUEUE as u32 + 1).contains(&sent), "{sent}");
        drop(go);
        assert_eq!(wait(&uploads).slot, slot(0));
        assert_eq!(wait(&uploads).slot, slot(1));
        uploads.send(slot(sent), (), 7).unwrap();
    }

    #[test]
    fn a_panic_is_an_error_of_its_adapter_alone() {
        let place = |fails: bool| if fails { panic!("planted") } else { Ok(()) };
        let uploads = Uploads::spawn("lk-test-upload", place).unwrap();
        for (index, fails) in [true, false].into_iter().enumerate() {
            uploads.send(slot(index as u32), fails, 0).unwrap();
            let placed = wait(&uploads);
            assert_eq!((placed.slot.index as usize, placed.result.is_err()), (index, fails));
        }
    }
}
