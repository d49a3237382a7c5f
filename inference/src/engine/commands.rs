//! Requests on their way in and out.

use super::handle::{Command, Submission};
use super::places::Places;
use super::{Engine, EngineEvent, EngineRequest, EngineState, FinishReason, RequestError, Usage};
use crate::guidance::{GuidanceError, Walker};
use crate::scheduler::{Ending, NewSequence, Sequence};
use lorikeet_compute::backend::SampledToken;
use lorikeet_compute::backend::batch::SequenceId;
use lorikeet_contract::{KeyId, RequestId, TenantId};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

/// What the engine keeps of a request beside its sequence.
pub(super) struct Request {
    pub id: RequestId,
    pub tenant: TenantId,
    pub key: Option<KeyId>,
    pub events: mpsc::Sender<EngineEvent>,
    /// None where no grammar is followed, and while the next mask is being computed.
    pub walker: Option<Walker>,
    /// The parameter that asked for a grammar.
    pub guided_by: Option<&'static str>,
    /// The tokens of the prompt that have been scored, until the last of them is. None: none are wanted.
    pub scores: Option<Vec<SampledToken>>,
    /// Its place among the requests held, given back when the request has ended.
    pub _place: Places,
}

impl Request {
    /// Takes up scores of tokens of the prompt, from the one at `first` on. After a preemption some come
    /// again, and some are of what has been drawn since.
    pub fn scored(&mut self, first: usize, prompt_len: usize, scores: Vec<SampledToken>) {
        if let Some(all) = &mut self.scores {
            let known = all.len();
            let of_prompt = prompt_len.saturating_sub(first);
            all.extend(scores.into_iter().take(of_prompt).skip(known.saturating_sub(first)));
        }
    }

    pub fn take_walker(&mut self) -> Option<Walker> {
        self.walker.take()
    }
}

impl Engine {
    pub(super) fn accept_commands(&mut self, now: Instant) {
        loop {
            let command = match self.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    // Nobody can ask for anything any more; whoever still reads gets the rest.
                    if self.requests.is_empty() {
                        self.state = EngineState::Stopped("every handle to it is gone".into());
                    }
                    break;
                }
            };
            match command {
                Command::Submit(submission) => self.accept(*submission, now),
                Command::Cancel(request) => {
                    if let Some(id) = self.by_id.get(&request).copied() {
                        self.cancel(id, now);
                    }
                }
                Command::Revoke(revocation) => {
                    self.fail_where(RequestError::Revoked, now, |request| {
                        revocation.covers(request.tenant, request.key)
                    });
                }
                Command::WarmUp(warm_up) => self.warm_up(warm_up, now),
                Command::Forget(key) => self.residency.forget(key),
                Command::Retain(adapters) => self.residency.retain(&adapters),
                Command::Pin(pins) => self.residency.pin(pins, now),
                Command::Drain => self.state = EngineState::Draining,
                Command::Shutdown => self.state = EngineState::Stopped("it was shut down".into()),
            }
        }
        self.cancel_closed(now);
    }

    fn accept(&mut self, submission: Submission, now: Instant) {
        if self.state != EngineState::Running {
            // It came through the door while that was being closed.
            return refuse(&submission.request, "the node is shutting down");
        }
        if let Some(guide) = &submission.request.guide
            && let Err(error) = self.mask_pool()
        {
            tracing::error!(%error, "no threads for grammars");
            let (parameter, error) = (guide.parameter, GuidanceError::Internal);
            return fail(&submission.request, RequestError::Guidance { parameter, error });
        }
        let Submission { request, submitted, place } = submission;
        let EngineRequest {
            id: request_id,
            tenant,
            share,
            key,
            adapter,
            prompt,
            params,
            rules,
            guide,
            max_tokens,
            mut stop_tokens,
            ignore_eos,
            logprobs,
            scores_prompt,
            deadline,
            events,
        } = request;
        if !ignore_eos {
            stop_tokens.extend_from_slice(&self.config.eos_tokens);
        }
        let context = self.config.base.context_length as usize;
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        let guided_by = guide.as_ref().map(|guide| guide.parameter);
        let (walker, allowed) = guide.map(|guide| (guide.walker, guide.first)).unzip();
        let first = prompt.first().map(|token| SampledToken {
            token: *token,
            logprob: None,
            top_logprobs: Vec::new(),
        });
        let scores = scores_prompt.then(|| first.into_iter().collect());
        let request = Request {
            id: request_id,
            tenant,
            key,
            events,
            walker,
            guided_by,
            scores,
            _place: place,
        };
        self.requests.insert(id, request);
        self.by_id.insert(request_id, id);
        let new = NewSequence {
            id,
            tenant,
            share,
            adapter,
            max_len: prompt.len().saturating_add(max_tokens as usize).min(context),
            prompt,
            params,
            rules,
            allowed,
            logprobs,
            scores_prompt,
            stop_tokens,
            deadline,
            submitted,
        };
        let added = self.scheduler.add(new, &self.kv, &mut self.residency, now);
        if let Err((sequence, ending)) = added {
            self.finish(&sequence, ending, now);
        }
    }

    /// Readers that have gone away, seen also while their requests wait.
    fn cancel_closed(&mut self, now: Instant) {
        let mut closed = std::mem::take(&mut self.closed);
        let gone = self.requests.iter().filter(|(_, request)| request.events.is_closed());
        closed.extend(gone.map(|(id, _)| *id));
        for id in closed.drain(..) {
            self.cancel(id, now);
        }
        self.closed = closed;
    }

    pub(super) fn cancel(&mut self, id: SequenceId, now: Instant) {
        let Some(sequence) = self.scheduler.remove(id, &mut self.kv) else { return };
        let usage = usage(&sequence, now);
        self.end(id, EngineEvent::Finished { reason: FinishReason::Cancelled, usage });
    }

    fn fail_where(
        &mut self,
        error: RequestError,
        now: Instant,
        covered: impl Fn(&Request) -> bool,
    ) {
        let covered = self.requests.iter().filter(|(_, request)| covered(request));
        for id in covered.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(sequence) = self.scheduler.remove(id, &mut self.kv) else { continue };
            let usage = usage(&sequence, now);
            self.end(id, EngineEvent::Failed { error: error.clone(), usage });
        }
    }

    /// Tells every request that the engine has stopped, those that nobody has taken in included.
    pub(super) fn fail_all(&mut self, reason: &str, now: Instant) {
        let error = RequestError::Engine(reason.to_owned());
        for id in self.requests.keys().copied().collect::<Vec<_>>() {
            // Sequences stay where they are: after a panic nothing else can be relied on.
            let usage = self.scheduler.get(id).map(|s| usage(s, now)).unwrap_or_default();
            self.end(id, EngineEvent::Failed { error: error.clone(), usage });
        }
        self.warm_ups.clear();
        refuse_all(&mut self.commands, reason);
    }

    /// Sends a request's last event and lets go of it.
    pub(super) fn end(&mut self, id: SequenceId, event: EngineEvent) {
        let Some(request) = self.requests.remove(&id) else { return };
        self.by_id.remove(&request.id);
        if let Some(masks) = &mut self.masks {
            masks.forget(id);
        }
        // A full or closed channel: nobody is left to be told.
        let _ = request.events.try_send(event);
    }

    pub(super) fn finish(&mut self, sequence: &Sequence, ending: Ending, now: Instant) {
        let usage = usage(sequence, now);
        let finished = |reason| EngineEvent::Finished { reason, usage };
        let failed = |error| EngineEvent::Failed { error, usage };
        let event = match ending {
            Ending::Stop => finished(FinishReason::Stop),
            Ending::Length => finished(FinishReason::Length),
            Ending::Deadline => failed(RequestError::Deadline),
            Ending::QueueTimeout { seconds } => failed(RequestError::QueueTimeout { seconds }),
            Ending::AdapterLoad(reason) => failed(RequestError::AdapterLoad(reason)),
            Ending::TooLarge { needed, available } => {
                failed(RequestError::TooLarge { needed, available })
            }
        };
        self.end(sequence.id, event);
    }
}

/// Closes the door, and tells those who came through it that the engine has stopped.
pub(super) fn refuse_all(commands: &mut mpsc::Receiver<Command>, reason: &str) {
    commands.close();
    while let Ok(command) = commands.try_recv() {
        if let Command::Submit(submission) = command {
            refuse(&submission.request, reason);
        }
    }
}

fn refuse(request: &EngineRequest, reason: &str) {
    fail(request, RequestError::Engine(reason.to_owned()));
}

/// Ends a request that has not been taken in.
fn fail(request: &EngineRequest, error: RequestError) {
    let usage = Usage { prompt_tokens: request.prompt.len() as u32, ..Usage::default() };
    // A full or closed channel: nobody is left to be told.
    let _ = request.events.try_send(EngineEvent::Failed { error, usage });
}

pub(super) fn usage(sequence: &Sequence, now: Instant) -> Usage {
    Usage {
        prompt_tokens: sequence.prompt_tokens() as u32,
        cached_tokens: sequence.cached_tokens(),
        completion_tokens: sequence.completion_tokens() as u32,
        queue: sequence.queue(now),
        adapter_load: sequence.adapter_load(),
    }
}
