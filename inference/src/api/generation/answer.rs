//! From tokens to the text that a client sees, and the log probabilities that go with it.

use super::stop::StopStrings;
use crate::api::tools::{CallParser, Part};
use lorikeet_compute::backend::SampledToken;
use lorikeet_compute::model::{Detokenizer, Tokenizer};
use serde::Serialize;
use std::collections::VecDeque;

/// One entry of OpenAI's `logprobs.content`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub chosen: Candidate,
    pub top_logprobs: Vec<Candidate>,
}

/// A token of the prompt that the answer begins with.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptToken {
    /// Nothing stands before it.
    First(String),
    Scored(TokenLogprob),
}

impl PromptToken {
    pub fn new(tokenizer: &Tokenizer, token: &SampledToken) -> Self {
        match token.logprob {
            Some(logprob) => Self::Scored(token_logprob(tokenizer, token, logprob)),
            None => Self::First(candidate(tokenizer, token.token, 0.0).token),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// What the answer has grown by.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    /// Comes by itself, before all else, where the prompt's log probabilities were asked for.
    pub prompt: Vec<PromptToken>,
    pub parts: Vec<Part>,
    /// Of the tokens whose text has been let through to where calls are found in it.
    pub logprobs: Vec<TokenLogprob>,
    /// A stop string has come: the answer ends here, whatever follows.
    pub stopped: bool,
}

impl Piece {
    pub fn is_empty(&self) -> bool {
        self.prompt.is_empty() && self.parts.is_empty() && self.logprobs.is_empty()
    }

    /// All text of an answer in which no calls are looked for.
    pub fn text(&self) -> String {
        let texts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            _ => "",
        });
        texts.collect()
    }
}

pub struct Answer {
    detokenizer: Detokenizer,
    stop: StopStrings,
    /// None: all is text.
    calls: Option<CallParser>,
    /// Stop strings do not end the answer, and are not looked for, before so many more tokens.
    unstoppable: u32,
    /// Bytes of text so far, and of those how many have been let through.
    produced: usize,
    passed: usize,
    /// With the length of the text up to their end.
    logprobs: VecDeque<(usize, TokenLogprob)>,
}

impl Answer {
    pub fn new(
        detokenizer: Detokenizer,
        stop: Vec<String>,
        calls: Option<CallParser>,
        min_tokens: u32,
    ) -> Self {
        Self {
            detokenizer,
            stop: StopStrings::new(stop),
            calls,
            unstoppable: min_tokens,
            produced: 0,
            passed: 0,
            logprobs: VecDeque::new(),
        }
    }

    pub fn push(&mut self, tokenizer: &Tokenizer, sampled: &SampledToken) -> Piece {
        let text = self.detokenizer.push(sampled.token);
        self.produced += text.len();
        if let Some(logprob) = sampled.logprob
            && !tokenizer.is_special(sampled.token)
        {
            let entry = token_logprob(tokenizer, sampled, logprob);
            self.logprobs.push_back((self.produced, entry));
        }
        if self.unstoppable > 0 {
            self.unstoppable -= 1;
            return self.let_through(text, false);
        }
        let passed = self.stop.push(&text);
        self.let_through(passed.text, passed.stopped)
    }

    /// The end of the answer, unless a stop string has ended it.
    pub fn finish(&mut self) -> Piece {
        let text = self.detokenizer.finish();
        self.produced += text.len();
        let passed = self.stop.push(&text);
        let mut piece = self.let_through(passed.text, passed.stopped);
        if !piece.stopped {
            let rest = self.stop.finish();
            self.say(rest, &mut piece.parts);
            self.end(&mut piece.parts);
            piece.logprobs.extend(self.logprobs.drain(..).map(|(_, entry)| entry));
        }
        piece
    }

    fn let_through(&mut self, text: String, stopped: bool) -> Piece {
        self.passed += text.len();
        let through = self.logprobs.iter().take_while(|(end, _)| *end <= self.passed).count();
        let logprobs = self.logprobs.drain(..through).map(|(_, entry)| entry).collect();
        let mut parts = Vec::new();
        self.say(text, &mut parts);
        if stopped {
            self.end(&mut parts);
        }
        Piece { prompt: Vec::new(), parts, logprobs, stopped }
    }

    fn say(&mut self, text: String, parts: &mut Vec<Part>) {
        match &mut self.calls {
            Some(calls) => calls.push(&text, parts),
            None if text.is_empty() => {}
            None => parts.push(Part::Text(text)),
        }
    }

    fn end(&mut self, parts: &mut Vec<Part>) {
        if let Some(calls) = &mut self.calls {
            calls.finish(parts);
        }
    }
}

fn token_logprob(tokenizer: &Tokenizer, sampled: &SampledToken, logprob: f32) -> TokenLogprob {
    let top = sampled.top_logprobs.iter();
    TokenLogprob {
        chosen: candidate(tokenizer, sampled.token, logprob),
        top_logprobs: top.map(|(id, p)| candidate(tokenizer, *id, *p)).collect(),
    }
}

fn candidate(tokenizer: &Tokenizer, token: u32, logprob: f32) -> Candidate {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    Candidate { token: String::from_utf8_lossy(bytes).into_owned(), logprob, bytes: bytes.to_vec() }
}
