//! OpenAI's `text_completion`, whole and in chunks, which have the same form.

use crate::api::error::ApiError;
use crate::api::frame::{Frame, finish_reason};
use crate::api::generation::{Counts, Ending, Piece, PromptToken, TokenLogprob};
use crate::api::models::Model;
use crate::api::parameters::Parameters;
use crate::api::shape::{Choice, Events, Shape};
use lorikeet_contract::RequestId;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What an answer and its chunks are called.
const OBJECT: &str = "text_completion";

pub struct CompletionShape {
    frame: Frame,
    logprobs: bool,
    /// What each choice begins with, until it has been told.
    echoes: Vec<Echo>,
    /// Characters of each choice so far.
    lengths: Vec<usize>,
}

/// What a choice begins with.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    pub text: String,
    /// It waits for its log probabilities.
    pub scored: bool,
}

#[derive(Serialize)]
struct TextChoice {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

/// Columns of equal length.
#[derive(Default, Serialize)]
struct Logprobs {
    tokens: Vec<String>,
    /// The first token of a prompt has none.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// In characters, from the beginning of the choice's text.
    text_offset: Vec<usize>,
}

impl CompletionShape {
    pub fn new(
        request: RequestId,
        model: &Model,
        parameters: &Parameters,
        echoes: Vec<Echo>,
    ) -> Self {
        let n = parameters.n as usize;
        let echoes: Vec<Echo> =
            echoes.into_iter().flat_map(|echo| std::iter::repeat_n(echo, n)).collect();
        Self {
            frame: Frame::new("cmpl", OBJECT, request, model, parameters),
            logprobs: parameters.logprobs.is_some(),
            lengths: echoes.iter().map(|echo| echo.text.chars().count()).collect(),
            echoes,
        }
    }

    fn logprobs(&mut self, index: usize, entries: Vec<TokenLogprob>) -> Option<Logprobs> {
        if !self.logprobs {
            return None;
        }
        let mut columns = Logprobs::default();
        for entry in entries {
            let offset = self.lengths[index];
            self.lengths[index] += entry.chosen.token.chars().count();
            columns.push(offset, entry);
        }
        Some(columns)
    }

    /// What the choice begins with. It has been told then.
    fn take_echo(&mut self, index: usize, prompt: Vec<PromptToken>) -> (String, Logprobs) {
        let Echo { text, .. } = std::mem::take(&mut self.echoes[index]);
        let mut columns = Logprobs::default();
        let mut offset = 0;
        for token in prompt {
            let (name, score) = match token {
                PromptToken::First(name) => (name, None),
                PromptToken::Scored(entry) => (entry.chosen.token.clone(), Some(entry)),
            };
            // What was put before the text is not in it.
            let length =
                if offset > 0 || text.starts_with(&name) { name.chars().count() } else { 0 };
            match score {
                Some(entry) => columns.push(offset, entry),
                None => columns.push_first(offset, name),
            }
            offset += length;
        }
        (text, columns)
    }
}

impl Logprobs {
    fn push(&mut self, offset: usize, TokenLogprob { chosen, top_logprobs }: TokenLogprob) {
        let top = top_logprobs.into_iter().chain([chosen.clone()]);
        self.top_logprobs.push(Some(top.map(|c| (c.token, json!(c.logprob))).collect()));
        self.text_offset.push(offset);
        self.token_logprobs.push(Some(chosen.logprob));
        self.tokens.push(chosen.token);
    }

    fn push_first(&mut self, offset: usize, token: String) {
        self.top_logprobs.push(None);
        self.text_offset.push(offset);
        self.token_logprobs.push(None);
        self.tokens.push(token);
    }

    fn extend(&mut self, more: Self) {
        self.tokens.extend(more.tokens);
        self.token_logprobs.extend(more.token_logprobs);
        self.top_logprobs.extend(more.top_logprobs);
        self.text_offset.extend(more.text_offset);
    }
}

impl Shape for CompletionShape {
    fn whole(mut self, choices: Vec<Choice>, counts: Counts) -> Value {
        let choices: Vec<TextChoice> = choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| {
                let (echo, mut columns) = self.take_echo(index, choice.prompt);
                let logprobs = self.logprobs(index, choice.logprobs).map(|of_answer| {
                    columns.extend(of_answer);
                    columns
                });
                let finish_reason = Some(finish_reason(choice.ending));
                TextChoice { index, text: echo + &choice.text, logprobs, finish_reason }
            })
            .collect();
        self.frame.whole(OBJECT, &choices, counts)
    }

    fn opening(&mut self, out: &mut Events) {
        for index in 0..self.echoes.len() {
            if self.echoes[index].scored {
                continue;
            }
            let (text, _) = self.take_echo(index, Vec::new());
            if !text.is_empty() {
                let choice = TextChoice { index, text, logprobs: None, finish_reason: None };
                self.frame.chunk(choice, out);
            }
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Events) {
        let text = piece.text();
        if !piece.prompt.is_empty() {
            let (text, columns) = self.take_echo(index, piece.prompt);
            let logprobs = Some(columns);
            self.frame.chunk(TextChoice { index, text, logprobs, finish_reason: None }, out);
            if piece.parts.is_empty() && piece.logprobs.is_empty() {
                return;
            }
        }
        let logprobs = self.logprobs(index, piece.logprobs);
        let choice = TextChoice { index, text, logprobs, finish_reason: None };
        self.frame.chunk(choice, out);
    }

    fn end(&mut self, index: usize, ending: Ending, out: &mut Events) {
        let finish_reason = Some(finish_reason(ending));
        let choice = TextChoice { index, text: String::new(), logprobs: None, finish_reason };
        self.frame.chunk(choice, out);
    }

    fn close(&mut self, counts: Counts, out: &mut Events) {
        self.frame.close(counts, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        self.frame.fail(error, out);
    }
}
