//! Answers that follow a grammar: JSON schemas, regular expressions, choices and context-free grammars,
//! through the llguidance crate (an Earley parser over lexemes that are derivatives of regular
//! expressions, walked along a trie of the vocabulary).
//!
//! ```text
//! api ── grammar ──> compile (own thread, bounded) ──> cache ──> guide, one for each choice
//! engine: a token was drawn ──> pool: advance the walker, compute the next mask ──> engine: draw again
//! ```
//! A row whose mask is not there yet sits out the step; nobody else waits for it.
//!
//! What a grammar may cost is bounded at each place: its size, the time until it is compiled (and how many
//! of a tenant are at once), the bytes that are kept of it, and of each sequence that follows it the time
//! of its masks and the bytes of its automaton.

mod cache;
mod compile;
#[cfg(test)]
mod costs;
mod grammar;
mod pool;
mod schema;
#[cfg(test)]
pub mod schemas;
#[cfg(test)]
mod tests;
mod turns;
mod vocabulary;
mod walker;

#[cfg(test)]
pub(crate) use tests::{walk, walk_behind};

pub use compile::{CompileError, Compiled, Guidance};
pub use grammar::{Grammar, Lark};
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
    #[error("the grammar is too complex to be followed further: make it simpler")]
    TooComplex,
    #[error("the grammar has come to a place where it allows nothing")]
    DeadEnd,
    #[error("the grammar could not be followed")]
    Internal,
}
