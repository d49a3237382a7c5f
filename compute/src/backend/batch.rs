//! The batch of one step, and what comes back of it.

use super::{AdapterSlot, BlockId};
use crate::sampling::{LogitEdit, SamplingParams, TokenMask};
use std::sync::Arc;

/// One running generation inside the engine; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Everything a backend needs for one forward pass. The vectors are reused from step to step.
#[derive(Debug, Clone, Default)]
pub struct StepBatch {
    pub step: u64,
    /// Prefill chunks and decode rows alike; each sequence at most once.
    pub sequences: Vec<SequenceStep>,
}

impl StepBatch {
    /// Rows (token positions) of the pass.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(|s| s.input.rows()).sum()
    }
}

/// One sequence's part of a step.
#[derive(Debug, Clone)]
pub struct SequenceStep {
    pub sequence: SequenceId,
    pub input: Input,
    /// Position of the first input token = tokens whose keys and values are already in the blocks.
    pub position: u32,
    /// Physical blocks in logical order; they cover `position + input.rows()` tokens.
    pub blocks: Vec<BlockId>,
    /// None: the base model alone.
    pub adapter: Option<AdapterSlot>,
    /// Set when the last input token is the last one known: its logits give the next token.
    pub sample: Option<SampleRequest>,
    pub logits: LogitsWanted,
}

/// The tokens that a sequence feeds in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Tokens(Vec<u32>),
    /// The token sampled for this sequence by the step submitted just before, still on the device.
    PreviousSample,
}

impl Input {
    pub fn rows(&self) -> usize {
        match self {
            Input::Tokens(tokens) => tokens.len(),
            Input::PreviousSample => 1,
        }
    }
}

/// What is wanted of the logits beside a draw. Raw ones are for tests and oracles, not for serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogitsWanted {
    #[default]
    None,
    /// Of the last input token.
    Last,
    /// Of every input token.
    All,
    /// No logits: the log probabilities of what stands behind each input token, which is the next one,
    /// and `next` behind the last, where nothing is drawn then; and of the `top` most likely tokens there.
    Scores { top: u8, next: Option<u32> },
}

/// How the next token is drawn.
#[derive(Debug, Clone, Default)]
pub struct SampleRequest {
    pub params: SamplingParams,
    /// Number of tokens already generated: with the seed it fixes the random draw.
    pub output_index: u32,
    /// Applied to the logits before the draw; each token at most once. Log probabilities are those of
    /// the logits as the model gave them.
    pub edits: Vec<LogitEdit>,
    /// Only these are drawn. None: any token.
    pub allowed: Option<Arc<TokenMask>>,
    /// Log probabilities of this many most likely tokens, beside the chosen one's. None: none at all.
    pub logprobs: Option<u8>,
}

/// A token drawn by a step, or one that was given and scored.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    pub token: u32,
    /// Natural log over the whole vocabulary at temperature 1; set when logprobs were asked for.
    pub logprob: Option<f32>,
    pub top_logprobs: Vec<(u32, f32)>,
}

/// One sequence's result, in the order of the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOutput {
    pub sequence: SequenceId,
    pub sampled: Option<SampledToken>,
    /// `rows x vocabulary` as asked for by [`LogitsWanted`].
    pub logits: Vec<Vec<f32>>,
    /// The tokens behind the input tokens, as asked for by [`LogitsWanted::Scores`].
    pub scores: Vec<SampledToken>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct StepOutput {
    pub step: u64,
    pub sequences: Vec<SequenceOutput>,
}
