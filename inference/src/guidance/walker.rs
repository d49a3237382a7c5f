//! One sequence's place in its grammar.

use super::GuidanceError;
use llguidance::api::StopReason;
use llguidance::panic_utils::catch_unwind;
use llguidance::{CancellationHandle, TokenParser};
use lorikeet_compute::sampling::TokenMask;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What all masks of a sequence may take: so long, and so much more for each of its tokens. Ordinary
/// schemas take a hundredth of it; what uses it up would go on to use up a processor.
const ALLOWANCE: Duration = Duration::from_secs(2);
const ALLOWANCE_PER_TOKEN: Duration = Duration::from_millis(20);
/// Bytes of the automaton that is made while a sequence walks through its grammar.
const MAX_BYTES: usize = 16 << 20;

pub struct Walker {
    parser: TokenParser,
    stop: CancellationHandle,
    tokens: u32,
    /// On all its masks.
    spent: Duration,
    /// On its last mask.
    last: Duration,
}

/// What may come behind the tokens so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// One of these; an end token among them if the answer may end here.
    Allowed(Arc<TokenMask>),
    /// Nothing: the answer is whole.
    Complete,
}

impl Walker {
    /// At the beginning of what `parser` has not begun yet.
    pub(super) fn new(mut parser: TokenParser) -> Self {
        if parser.is_fresh() {
            parser.start_without_prompt();
        }
        let stop = parser.enable_cancellation();
        Self { parser, stop, tokens: 0, spent: Duration::ZERO, last: Duration::ZERO }
    }

    /// Another one at the same place. They share no state, so that none can use up what the other needs.
    pub(super) fn fork(&self) -> Self {
        Self::new(self.parser.deep_clone())
    }

    /// Takes up a token that the last mask allowed, and computes the next mask: milliseconds, unless the
    /// grammar is made to cost more.
    pub fn advance(&mut self, token: u32) -> Result<Next, GuidanceError> {
        let begun = Instant::now();
        self.tokens += 1;
        let next = self.try_advance(token);
        self.last = begun.elapsed();
        self.spent += self.last;
        if self.bytes() > MAX_BYTES {
            return Err(GuidanceError::TooComplex);
        }
        next
    }

    fn try_advance(&mut self, token: u32) -> Result<Next, GuidanceError> {
        if self.left().is_zero() {
            return Err(GuidanceError::TooComplex);
        }
        let parser = &mut self.parser;
        let taken = catch_unwind(AssertUnwindSafe(|| {
            parser.consume_token(token)?;
            parser.check_stop()
        }));
        match taken {
            Ok(true) => Ok(Next::Complete),
            Ok(false) => self.next(),
            Err(_) => Err(self.error()),
        }
    }

    pub(super) fn next(&mut self) -> Result<Next, GuidanceError> {
        let parser = &mut self.parser;
        let mask = catch_unwind(AssertUnwindSafe(|| parser.compute_mask()));
        let mut mask = mask.map_err(|_| self.error())?;
        let words = mask.as_slice().to_vec();
        let ends = self.parser.token_env.tok_trie().eos_tokens();
        ends.iter().for_each(|token| mask.disallow_token(*token));
        if mask.is_zero() {
            return Ok(Next::Complete);
        }
        Ok(Next::Allowed(Arc::new(TokenMask::new(words))))
    }

    fn error(&self) -> GuidanceError {
        match self.parser.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex | StopReason::Cancelled => {
                GuidanceError::TooComplex
            }
            StopReason::NoExtensionBias => GuidanceError::DeadEnd,
            _ => GuidanceError::Internal,
        }
    }

    /// Ends what it is doing, from another thread.
    pub(super) fn stop(&self) -> CancellationHandle {
        self.stop.clone()
    }

    /// What its masks may take from now on.
    pub(super) fn left(&self) -> Duration {
        (ALLOWANCE + ALLOWANCE_PER_TOKEN * self.tokens).saturating_sub(self.spent)
    }

    pub(super) fn spent(&self) -> Duration {
        self.spent
    }

    pub(super) fn last(&self) -> Duration {
        self.last
    }

    pub(super) fn bytes(&self) -> usize {
        self.parser.parser.lexer_stats().num_bytes
    }
}
