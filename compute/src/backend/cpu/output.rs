//! The output layer and the draw, for the rows whose logits are wanted.

use super::element::Element;
use super::forward::Step;
use super::pack::Rows;
use super::plan::{LogitRow, Score};
use super::pool::Member;
use super::shared::Shared;
use crate::backend::{SampleRequest, SampledToken, StepBatch};
use crate::sampling::{self, Sampler};

/// Rows that go through the output layer together: bounds the memory for logits.
const LOGIT_ROWS: usize = 64;

/// Logits of some rows.
pub struct OutputBuffers<T> {
    x: Shared<T>,
    logits: Shared<f32>,
}

/// What one thread drew and copied.
#[derive(Default)]
pub struct Drawn {
    sampler: Sampler,
    /// By index into [`super::plan::StepPlan::logit_rows`].
    pub results: Vec<(usize, RowOutput)>,
}

pub struct RowOutput {
    pub sampled: Option<SampledToken>,
    pub logits: Option<Vec<f32>>,
    pub score: Option<SampledToken>,
}

impl<T: Element> OutputBuffers<T> {
    pub fn new(hidden: usize, vocabulary: usize, max_rows: usize) -> Self {
        let rows = max_rows.min(LOGIT_ROWS);
        Self { x: Shared::zeroed(rows * hidden), logits: Shared::zeroed(rows * vocabulary) }
    }
}

impl<T: Element> Step<'_, T> {
    /// Runs after [`Step::run`], on every thread.
    pub fn run_output(
        &self,
        member: Member,
        batch: &StepBatch,
        buffers: &OutputBuffers<T>,
        drawn: &mut Drawn,
    ) {
        let (hidden, vocabulary) = (self.model.hidden(), self.model.lm_head.outputs());
        for (chunk_index, chunk) in self.plan.logit_rows.chunks(LOGIT_ROWS).enumerate() {
            let share = member.share(chunk.len());
            for index in share.clone() {
                let row = chunk[index].row;
                // SAFETY: this thread's rows.
                let out = unsafe { buffers.x.write(index * hidden..(index + 1) * hidden) };
                // SAFETY: written in an earlier phase.
                let x = unsafe { self.buffers.x.read(row * hidden..(row + 1) * hidden) };
                out.copy_from_slice(x);
            }
            member.wait();
            // SAFETY: written in an earlier phase.
            let data = unsafe { buffers.x.read(0..chunk.len() * hidden) };
            let x = Rows { data, stride: hidden, count: chunk.len() };
            self.multiply_share(member, &self.model.lm_head, x, &buffers.logits);
            member.wait();
            for index in share {
                let range = index * vocabulary..(index + 1) * vocabulary;
                // SAFETY: written in an earlier phase.
                let logits = unsafe { buffers.logits.read(range) };
                let result = draw(&mut drawn.sampler, chunk[index], logits, batch);
                drawn.results.push((chunk_index * LOGIT_ROWS + index, result));
            }
            member.wait();
        }
    }
}

fn draw(sampler: &mut Sampler, row: LogitRow, logits: &[f32], batch: &StepBatch) -> RowOutput {
    let request = batch.sequences[row.sequence].sample.as_ref().filter(|_| row.sample);
    RowOutput {
        sampled: request.map(|request| sample(sampler, logits, request)),
        logits: row.copy.then(|| logits.to_vec()),
        score: row.score.map(|Score { token, top }| {
            let (logprob, top_logprobs) = sampling::log_probs(logits, token, top);
            SampledToken { token, logprob: Some(logprob), top_logprobs }
        }),
    }
}

fn sample(sampler: &mut Sampler, logits: &[f32], request: &SampleRequest) -> SampledToken {
    let SampleRequest { params, output_index, edits, allowed, .. } = request;
    let token = sampler.draw_edited(logits, edits, allowed.as_deref(), params, *output_index);
    let Some(top) = request.logprobs else {
        return SampledToken { token, logprob: None, top_logprobs: Vec::new() };
    };
    let (logprob, top_logprobs) = sampling::log_probs(logits, token, top);
    SampledToken { token, logprob: Some(logprob), top_logprobs }
}
