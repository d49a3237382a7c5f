//! OpenAI's `text_completion`, whole and in chunks, which have the same form.

use crate::api::error::ApiError;
use crate::api::generation::{Counts, Ending, Piece, TokenLogprob};
use crate::api::models::Model;
use crate::api::parameters::Parameters;
use crate::api::shape::{Choice, Events, Shape, finish_reason};
use crate::api::usage::Usage;
use lorikeet_contract::RequestId;
use serde::Serialize;
use serde_json::{Map, Value, json};

pub struct CompletionShape {
    request: RequestId,
    id: String,
    created: i64,
    model: String,
    fingerprint: String,
    logprobs: bool,
    include_usage: bool,
    /// What each choice begins with.
    echoes: Vec<String>,
    /// Characters of each choice so far.
    lengths: Vec<usize>,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [TextChoice],
    /// Null in every chunk but the last where the last one carries the counts; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
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
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    /// In characters, from the beginning of the choice's text.
    text_offset: Vec<usize>,
}

impl CompletionShape {
    pub fn new(
        request: RequestId,
        model: &Model,
        parameters: &Parameters,
        echoes: Vec<String>,
    ) -> Self {
        let n = parameters.n as usize;
        let echoes: Vec<String> =
            echoes.into_iter().flat_map(|echo| std::iter::repeat_n(echo, n)).collect();
        Self {
            request,
            id: format!("cmpl-{}", request.as_uuid().simple()),
            created: crate::durable::unix_ms() / 1000,
            model: model.name.clone(),
            fingerprint: model.fingerprint.clone(),
            logprobs: parameters.logprobs.is_some(),
            include_usage: parameters.include_usage,
            lengths: echoes.iter().map(|echo| echo.chars().count()).collect(),
            echoes,
        }
    }

    fn logprobs(&mut self, index: usize, entries: Vec<TokenLogprob>) -> Option<Logprobs> {
        if !self.logprobs {
            return None;
        }
        let mut columns = Logprobs::default();
        for TokenLogprob { chosen, top_logprobs } in entries {
            let top = top_logprobs.into_iter().chain([chosen.clone()]);
            columns.top_logprobs.push(top.map(|c| (c.token, json!(c.logprob))).collect());
            columns.text_offset.push(self.lengths[index]);
            self.lengths[index] += chosen.token.chars().count();
            columns.tokens.push(chosen.token);
            columns.token_logprobs.push(chosen.logprob);
        }
        Some(columns)
    }

    fn body<'a>(&'a self, choices: &'a [TextChoice], usage: Option<Option<Usage>>) -> Body<'a> {
        Body {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
        }
    }

    fn push(&self, choices: &[TextChoice], usage: Option<Usage>, out: &mut Events) {
        out.push(&self.body(choices, self.include_usage.then_some(usage)));
    }
}

impl Shape for CompletionShape {
    fn whole(mut self, choices: Vec<Choice>, counts: Counts) -> Value {
        let choices: Vec<TextChoice> = choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| TextChoice {
                index,
                text: std::mem::take(&mut self.echoes[index]) + &choice.text,
                logprobs: self.logprobs(index, choice.logprobs),
                finish_reason: Some(finish_reason(choice.ending)),
            })
            .collect();
        json!(self.body(&choices, Some(Some(counts.into()))))
    }

    fn opening(&mut self, out: &mut Events) {
        for index in 0..self.echoes.len() {
            let text = std::mem::take(&mut self.echoes[index]);
            if !text.is_empty() {
                let choice = TextChoice { index, text, logprobs: None, finish_reason: None };
                self.push(&[choice], None, out);
            }
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Events) {
        let text = piece.text();
        let logprobs = self.logprobs(index, piece.logprobs);
        let choice = TextChoice { index, text, logprobs, finish_reason: None };
        self.push(&[choice], None, out);
    }

    fn end(&mut self, index: usize, ending: Ending, out: &mut Events) {
        let finish_reason = Some(finish_reason(ending));
        let choice = TextChoice { index, text: String::new(), logprobs: None, finish_reason };
        self.push(&[choice], None, out);
    }

    fn close(&mut self, counts: Counts, out: &mut Events) {
        if self.include_usage {
            self.push(&[], Some(counts.into()), out);
        }
        out.push_done();
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.push(&error.body(self.request));
        out.push_done();
    }
}
