//! Answers that follow a grammar: JSON schemas, regular expressions, choices and context-free grammars,
//! through the llguidance crate (an Earley parser over lexemes that are derivatives of regular
//! expressions, walked along a trie of the vocabulary).
//!
//! ```text
//! api ── grammar ──> compile (own thread, bounded) ──> cache ──> guide, one for each choice
//! engine: a token was drawn ──> pool: advance the walker, compute the next mask ──> engine: draw again
//! ```
//! A row whose mask is not there yet sits out the step; nobody else waits for it.

mod cache;
mod compile;
mod grammar;
mod pool;
#[cfg(test)]
mod tests;
mod vocabulary;
mod walker;

pub use compile::{CompileError, Compiled, Guidance};
pub use grammar::Grammar;
pub use pool::{MaskDone, MaskPool};
pub use walker::{Next, Walker};

use lorikeet_compute::sampling::TokenMask;
use std::sync::Arc;

/// What one sequence is to follow, from its beginning.
pub struct Guide {
    pub walker: Walker,
    /// Of the first draw.
    pub first: Arc<TokenMask>,
    /// The request's field that asked for it.
    pub parameter: &'static str,
}

/// A grammar that is followed no further. What was drawn and what the grammar says stay out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuidanceError {
    #[error("the grammar is too complex to be followed to this point")]
    TooComplex,
    #[error("the grammar could not be followed")]
    Internal,
}
