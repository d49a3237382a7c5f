//! Sequences that follow a grammar: each draw waits for the mask that the token before it leads to.

use super::commands::Request;
use super::{Engine, EngineEvent, RequestError};
use crate::guidance::{MaskDone, MaskPool, Next};
use crate::scheduler::Ending;
use lorikeet_compute::backend::batch::SequenceId;
use std::time::{Duration, Instant};

/// A step waits for masks as long as this part of the step before it took: so guided rows need not sit
/// out a step for the sake of some microseconds, and the others hardly notice.
const PATIENCE: u32 = 16;

impl Engine {
    /// The threads that compute masks, started with the first request that needs them.
    pub(super) fn mask_pool(&mut self) -> std::io::Result<()> {
        if self.masks.is_none() {
            let engine = std::thread::current();
            self.masks = Some(MaskPool::start(self.config.max_requests, &engine)?);
        }
        Ok(())
    }

    /// Lets a guided sequence's grammar take up the token that it has just drawn.
    pub(super) fn follow(&mut self, id: SequenceId, token: u32) {
        let Some(masks) = &mut self.masks else { return };
        if let Some(walker) = self.requests.get_mut(&id).and_then(Request::take_walker) {
            masks.begin(id, walker, token);
        }
    }

    pub(super) fn accept_masks(&mut self, now: Instant) {
        if self.masks.is_none() {
            return;
        }
        let patience = Instant::now() + self.last_step / PATIENCE;
        while let Some(done) = self.masks.as_mut().and_then(|masks| masks.poll(patience)) {
            self.accept_mask(done, now);
        }
        if let Some(masks) = &mut self.masks {
            masks.end_late();
        }
        self.last_step = Duration::ZERO;
    }

    fn accept_mask(&mut self, done: MaskDone, now: Instant) {
        let MaskDone { sequence: id, walker, next } = done;
        // It may have ended in the meantime.
        let Some(request) = self.requests.get_mut(&id) else { return };
        match next {
            Ok(Next::Allowed(mask)) => {
                request.walker = Some(walker);
                self.scheduler.allow(id, mask);
            }
            Ok(Next::Complete) => {
                if let Some(sequence) = self.scheduler.remove(id, &mut self.kv) {
                    self.finish(&sequence, Ending::Stop, now);
                }
            }
            Err(error) => {
                let parameter = request.guided_by.unwrap_or_default();
                self.fail_one(id, RequestError::Guidance { parameter, error }, now);
            }
        }
    }

    fn fail_one(&mut self, id: SequenceId, error: RequestError, now: Instant) {
        let Some(sequence) = self.scheduler.remove(id, &mut self.kv) else { return };
        let usage = super::commands::usage(&sequence, now);
        self.end(id, EngineEvent::Failed { error, usage });
    }
}
