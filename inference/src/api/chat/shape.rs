//! OpenAI's `chat.completion` and `chat.completion.chunk`.

use crate::api::error::ApiError;
use crate::api::generation::{Counts, Ending, Piece, TokenLogprob};
use crate::api::models::Model;
use crate::api::parameters::Parameters;
use crate::api::shape::{Choice, Events, Shape};
use crate::api::usage::Usage;
use lorikeet_contract::RequestId;
use serde::Serialize;
use serde_json::{Value, json};

pub struct ChatShape {
    request: RequestId,
    id: String,
    created: i64,
    model: String,
    fingerprint: String,
    choices: usize,
    logprobs: bool,
    include_usage: bool,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [ChunkChoice],
    /// Null in every chunk but the last where the last one carries the counts; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<()>,
}

impl ChatShape {
    pub fn new(request: RequestId, model: &Model, parameters: &Parameters) -> Self {
        Self {
            request,
            id: format!("chatcmpl-{}", request.as_uuid().simple()),
            created: crate::durable::unix_ms() / 1000,
            model: model.name.clone(),
            fingerprint: model.fingerprint.clone(),
            choices: parameters.n as usize,
            logprobs: parameters.logprobs.is_some(),
            include_usage: parameters.include_usage,
        }
    }

    fn logprobs(&self, content: Vec<TokenLogprob>) -> Option<Logprobs> {
        self.logprobs.then_some(Logprobs { content, refusal: None })
    }

    fn chunk(&self, choice: ChunkChoice, out: &mut Events) {
        self.push(&[choice], None, out);
    }

    fn push(&self, choices: &[ChunkChoice], usage: Option<Usage>, out: &mut Events) {
        out.push(&Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage: self.include_usage.then_some(usage),
        });
    }
}

impl Shape for ChatShape {
    fn whole(self, choices: Vec<Choice>, counts: Counts) -> Value {
        let choices = choices.into_iter().enumerate().map(|(index, choice)| {
            json!({
                "index": index,
                "message": { "role": "assistant", "content": choice.text, "refusal": null },
                "logprobs": self.logprobs(choice.logprobs),
                "finish_reason": finish_reason(choice.ending),
            })
        });
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices.collect::<Vec<_>>(),
            "usage": Usage::from(counts),
        })
    }

    /// Whose turn it is, in each choice.
    fn opening(&mut self, out: &mut Events) {
        for index in 0..self.choices {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            self.chunk(ChunkChoice { index, delta, logprobs: None, finish_reason: None }, out);
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Events) {
        let delta = Delta { role: None, content: Some(piece.text) };
        let logprobs = self.logprobs(piece.logprobs);
        self.chunk(ChunkChoice { index, delta, logprobs, finish_reason: None }, out);
    }

    fn end(&mut self, index: usize, ending: Ending, out: &mut Events) {
        let finish_reason = Some(finish_reason(ending));
        let delta = Delta::default();
        self.chunk(ChunkChoice { index, delta, logprobs: None, finish_reason }, out);
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

pub fn finish_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Stop => "stop",
        Ending::Length => "length",
    }
}
