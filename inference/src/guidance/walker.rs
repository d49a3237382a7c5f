//! One sequence's place in its grammar.

use super::GuidanceError;
use llguidance::Matcher;
use llguidance::api::StopReason;
use lorikeet_compute::sampling::TokenMask;
use std::sync::Arc;

pub struct Walker(Matcher);

/// What may come behind the tokens so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// One of these; an end token among them if the answer may end here.
    Allowed(Arc<TokenMask>),
    /// Nothing: the answer is whole.
    Complete,
}

impl Walker {
    pub(super) fn new(matcher: Matcher) -> Self {
        Self(matcher)
    }

    pub(super) fn into_matcher(self) -> Matcher {
        self.0
    }

    /// Takes up a token that the last mask allowed, and computes the next mask: milliseconds at most.
    pub fn advance(&mut self, token: u32) -> Result<Next, GuidanceError> {
        let advanced = self.0.consume_token(token);
        advanced.map_err(|_| self.error())?;
        self.next()
    }

    pub(super) fn next(&mut self) -> Result<Next, GuidanceError> {
        if self.0.is_stopped() && !self.0.is_error() {
            return Ok(Next::Complete);
        }
        let mask = self.0.compute_mask();
        let mut mask = match mask {
            Ok(mask) => mask,
            Err(_) if self.0.stop_reason().is_ok() => return Ok(Next::Complete),
            Err(_) => return Err(self.error()),
        };
        let env = self.0.tok_env().map_err(|_| GuidanceError::Internal)?;
        let ends = env.tok_trie().eos_tokens();
        let words = mask.as_slice().to_vec();
        ends.iter().for_each(|token| mask.disallow_token(*token));
        if mask.is_zero() {
            return Ok(Next::Complete);
        }
        Ok(Next::Allowed(Arc::new(TokenMask::new(words))))
    }

    fn error(&self) -> GuidanceError {
        match self.0.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => GuidanceError::TooComplex,
            _ => GuidanceError::Internal,
        }
    }
}
