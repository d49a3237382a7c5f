//! A planned step on its way through the backend.

use super::{Engine, EngineError, EngineEvent, InFlight, StepReport};
use crate::scheduler::{Commit, PlannedSequence, Scheduler, Score, Sequence, StepPlan};
use lorikeet_compute::backend::{
    Input, LogitsWanted, SampleRequest, SampledToken, SequenceOutput, SequenceStep, StepBatch,
};
use std::time::Instant;

impl Engine {
    pub(super) fn submit(&mut self, plan: StepPlan, now: Instant) -> Result<(), EngineError> {
        self.step += 1;
        fill(&mut self.batch, self.step, &plan, &self.scheduler);
        // The real time, whatever clock the engine is stepped by.
        let submitted = Instant::now();
        let ticket = self.backend.submit(&self.batch)?;
        self.announce(&plan, now);
        self.stats.send_modify(|stats| {
            let seen = &mut self.seen_slots;
            report(&mut stats.last_step, self.step, &plan, &self.scheduler, seen);
            self.metrics.step_submitted(&stats.last_step);
        });
        self.in_flight.push_back(InFlight { plan, ticket, submitted });
        Ok(())
    }

    /// Tells those whose first rows these are what they waited for and found in the cache.
    fn announce(&self, plan: &StepPlan, now: Instant) {
        for planned in plan.sequences.iter().filter(|planned| planned.is_first) {
            let request = self.requests.get(&planned.sequence);
            let sequence = self.scheduler.get(planned.sequence);
            if let (Some(request), Some(sequence)) = (request, sequence) {
                let event = EngineEvent::Started {
                    cached_tokens: sequence.cached_tokens(),
                    queue: sequence.queue(now),
                    adapter_load: sequence.adapter_load(),
                };
                // A reader that is gone is noticed by the next round.
                let _ = request.events.try_send(event);
            }
        }
    }

    /// Waits for the oldest submitted step and commits it. False when there is none.
    pub(super) fn collect(&mut self, now: Instant) -> Result<bool, EngineError> {
        let Some(InFlight { mut plan, ticket, submitted }) = self.in_flight.pop_front() else {
            return Ok(false);
        };
        let mut output = self.backend.collect(ticket)?;
        self.last_step = submitted.elapsed();
        self.metrics.step_seconds.observe_duration(self.last_step);
        if output.sequences.len() != plan.sequences.len() {
            return Err(EngineError::Contract("a step's output has other sequences than it had"));
        }
        for (planned, output) in plan.sequences.iter().zip(output.sequences.drain(..)) {
            self.commit(planned, output, now)?;
        }
        self.backend.recycle(output);
        // Drops the leases: what the step has read may be evicted now.
        plan.clear();
        self.spare_plans.push(plan);
        Ok(true)
    }

    fn commit(
        &mut self,
        planned: &PlannedSequence,
        output: SequenceOutput,
        now: Instant,
    ) -> Result<(), EngineError> {
        let id = planned.sequence;
        if output.sequence != id {
            return Err(EngineError::Contract("a step's output is in another order than it was"));
        }
        if output.sampled.is_some() != planned.samples {
            return Err(EngineError::Contract("a token was not drawn, or one that nobody wanted"));
        }
        let token = output.sampled.as_ref().map(|sampled| sampled.token);
        let allowed = self.scheduler.get(id).and_then(Sequence::allowed);
        if let Some((mask, token)) = allowed.zip(token)
            && !mask.allows(token)
        {
            return Err(EngineError::Contract("a token was drawn that was not allowed"));
        }
        self.take_scores(planned, output.scores);
        let commit = self.scheduler.commit(planned, token, &mut self.kv);
        if matches!(commit, Commit::Gone) {
            return Ok(());
        }
        let delivered = match (output.sampled, self.requests.get(&id)) {
            (Some(sampled), Some(request)) => {
                request.events.try_send(EngineEvent::Token(sampled)).is_ok()
            }
            _ => true,
        };
        match commit {
            Commit::Ended(sequence, ending) => self.finish(&sequence, ending, now),
            // The reader is gone, or has let its channel fill up.
            _ if !delivered => self.cancel(id, now),
            _ => token.into_iter().for_each(|token| self.follow(id, token)),
        }
        Ok(())
    }
}

impl Engine {
    /// Of a prompt; told with its last row, before the token that is drawn there.
    fn take_scores(&mut self, planned: &PlannedSequence, scores: Vec<SampledToken>) {
        let Some(request) = self.requests.get_mut(&planned.sequence) else { return };
        if request.scores.is_none() {
            return;
        }
        if let Some(sequence) = self.scheduler.get(planned.sequence) {
            request.scored(planned.position + 1, sequence.prompt_tokens(), scores);
        }
        if planned.samples
            && let Some(scores) = request.scores.take()
        {
            // A reader that is gone is noticed with the token.
            let _ = request.events.try_send(EngineEvent::Prompt(scores));
        }
    }
}

/// Overwrites the batch, keeping the vectors inside it.
fn fill(batch: &mut StepBatch, step: u64, plan: &StepPlan, scheduler: &Scheduler) {
    batch.step = step;
    batch.sequences.truncate(plan.sequences.len());
    for (i, planned) in plan.sequences.iter().enumerate() {
        let sequence = scheduler.get(planned.sequence).expect("planned sequences exist");
        if i == batch.sequences.len() {
            batch.sequences.push(SequenceStep {
                sequence: planned.sequence,
                input: Input::PreviousSample,
                position: 0,
                blocks: Vec::new(),
                adapter: None,
                sample: None,
                logits: LogitsWanted::None,
            });
        }
        fill_one(&mut batch.sequences[i], planned, sequence);
    }
}

fn fill_one(step: &mut SequenceStep, planned: &PlannedSequence, sequence: &Sequence) {
    step.sequence = planned.sequence;
    step.position = planned.position as u32;
    step.blocks.clear();
    step.blocks.extend_from_slice(sequence.table().blocks());
    step.adapter = planned.lease.as_ref().map(|lease| lease.slot());
    step.logits = match sequence.score(planned) {
        Some(Score { top, next, .. }) => LogitsWanted::Scores { top, next },
        None => LogitsWanted::None,
    };
    let mut edits = step.sample.take().map(|sample| sample.edits).unwrap_or_default();
    edits.clear();
    step.sample = planned.samples.then(|| {
        edits.extend_from_slice(sequence.edits());
        SampleRequest {
            params: sequence.params().clone(),
            output_index: (planned.position + planned.rows - sequence.prompt_tokens()) as u32,
            edits,
            allowed: sequence.allowed().cloned(),
            logprobs: sequence.logprobs(),
        }
    });
    if planned.follows_pending {
        step.input = Input::PreviousSample;
        return;
    }
    let tokens = &sequence.tokens()[planned.position..planned.position + planned.rows];
    match &mut step.input {
        Input::Tokens(reused) => {
            reused.clear();
            reused.extend_from_slice(tokens);
        }
        input => *input = Input::Tokens(tokens.to_vec()),
    }
}

fn report(
    report: &mut StepReport,
    step: u64,
    plan: &StepPlan,
    scheduler: &Scheduler,
    seen: &mut Vec<bool>,
) {
    let adapters = std::mem::take(&mut report.adapters);
    *report = StepReport {
        step,
        sequences: plan.sequences.len() as u32,
        preempted: plan.preempted,
        adapters,
        ..StepReport::default()
    };
    report.adapters.clear();
    seen.clear();
    for planned in &plan.sequences {
        let is_decode = planned.is_decode;
        let rows = if is_decode { &mut report.decode_rows } else { &mut report.prefill_rows };
        *rows += planned.rows as u32;
        let Some(lease) = &planned.lease else {
            report.base_sequences += 1;
            continue;
        };
        let slot = lease.slot().index as usize;
        seen.resize(seen.len().max(slot + 1), false);
        if !std::mem::replace(&mut seen[slot], true) {
            let sequence = scheduler.get(planned.sequence);
            report.adapters.extend(sequence.and_then(Sequence::adapter));
        }
    }
}
