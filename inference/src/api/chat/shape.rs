//! OpenAI's `chat.completion` and `chat.completion.chunk`.

use crate::api::error::ApiError;
use crate::api::frame::{Frame, finish_reason};
use crate::api::generation::{Counts, Ending, Piece, TokenLogprob};
use crate::api::models::Model;
use crate::api::parameters::Parameters;
use crate::api::shape::{Call, Choice, Events, Shape};
use crate::api::tools::{Part, new_call_id};
use lorikeet_contract::RequestId;
use serde::Serialize;
use serde_json::{Value, json};

pub struct ChatShape {
    frame: Frame,
    /// The calls of each choice.
    choices: Vec<Calls>,
    logprobs: bool,
}

/// What has been told of a choice's calls.
#[derive(Debug, Clone, Copy, Default)]
struct Calls {
    begun: usize,
    whole: usize,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta; 1]>,
}

#[derive(Serialize)]
struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl Delta {
    fn text(content: String) -> Self {
        Self { content: Some(content), ..Self::default() }
    }

    fn call(delta: CallDelta) -> Self {
        Self { tool_calls: Some([delta]), ..Self::default() }
    }
}

impl Calls {
    /// None: the part says nothing that a client has not been told.
    fn delta(&mut self, part: Part) -> Option<Delta> {
        match part {
            Part::Text(text) => Some(Delta::text(text)),
            Part::Call(name) => {
                self.begun += 1;
                Some(Delta::call(CallDelta {
                    index: self.begun - 1,
                    id: Some(new_call_id()),
                    r#type: Some("function"),
                    function: FunctionDelta { name: Some(name), arguments: String::new() },
                }))
            }
            Part::Arguments(arguments) => Some(Delta::call(CallDelta {
                index: self.begun.saturating_sub(1),
                id: None,
                r#type: None,
                function: FunctionDelta { name: None, arguments },
            })),
            Part::CallEnd => {
                self.whole += 1;
                None
            }
            Part::NoCall { text, unseen } => {
                let rest = text.get(text.len() - unseen..).unwrap_or_default();
                (!rest.is_empty()).then(|| Delta::text(rest.to_owned()))
            }
        }
    }

    fn finish_reason(self, ending: Ending) -> &'static str {
        // One that was told of and is none can no more be told from the others.
        let all_whole = self.whole > 0 && self.whole == self.begun;
        if all_whole && ending == Ending::Stop { "tool_calls" } else { finish_reason(ending) }
    }
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<()>,
}

impl ChatShape {
    pub fn new(request: RequestId, model: &Model, parameters: &Parameters) -> Self {
        Self {
            frame: Frame::new("chatcmpl", "chat.completion.chunk", request, model, parameters),
            choices: vec![Calls::default(); parameters.n as usize],
            logprobs: parameters.logprobs.is_some(),
        }
    }

    fn logprobs(&self, content: Vec<TokenLogprob>) -> Option<Logprobs> {
        self.logprobs.then_some(Logprobs { content, refusal: None })
    }
}

impl Shape for ChatShape {
    fn whole(self, choices: Vec<Choice>, counts: Counts) -> Value {
        let choices = choices.into_iter().enumerate().map(|(index, choice)| {
            let calls = Calls { begun: choice.calls.len(), whole: choice.calls.len() };
            json!({
                "index": index,
                "message": message(choice.text, choice.calls),
                "logprobs": self.logprobs(choice.logprobs),
                "finish_reason": calls.finish_reason(choice.ending),
            })
        });
        self.frame.whole("chat.completion", &choices.collect::<Vec<_>>(), counts)
    }

    /// Whose turn it is, in each choice.
    fn opening(&mut self, out: &mut Events) {
        for index in 0..self.choices.len() {
            let delta = Delta { role: Some("assistant"), ..Delta::text(String::new()) };
            self.frame
                .chunk(ChunkChoice { index, delta, logprobs: None, finish_reason: None }, out);
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Events) {
        let calls = &mut self.choices[index];
        let mut deltas: Vec<Delta> =
            piece.parts.into_iter().filter_map(|part| calls.delta(part)).collect();
        if deltas.is_empty() && self.logprobs {
            // What a call is marked by has no text.
            deltas.push(Delta::default());
        }
        let mut logprobs = self.logprobs(piece.logprobs);
        for delta in deltas {
            let logprobs = logprobs.take();
            self.frame.chunk(ChunkChoice { index, delta, logprobs, finish_reason: None }, out);
        }
    }

    fn end(&mut self, index: usize, ending: Ending, out: &mut Events) {
        let finish_reason = Some(self.choices[index].finish_reason(ending));
        let delta = Delta::default();
        self.frame.chunk(ChunkChoice { index, delta, logprobs: None, finish_reason }, out);
    }

    fn close(&mut self, counts: Counts, out: &mut Events) {
        self.frame.close(counts, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        self.frame.fail(error, out);
    }
}

/// An answer of nothing but calls has no content.
fn message(text: String, calls: Vec<Call>) -> Value {
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if !calls.is_empty() {
        let calls = calls.into_iter().map(|Call { name, arguments }| {
            let function = json!({ "name": name, "arguments": arguments });
            json!({ "id": new_call_id(), "type": "function", "function": function })
        });
        message["tool_calls"] = calls.collect();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_has_told_of_a_broken_call_does_not_say_that_calls_are_to_be_run() {
        let mut calls = Calls::default();
        for part in [Part::Call("f".into()), Part::Arguments("{}".into()), Part::CallEnd] {
            calls.delta(part);
        }
        assert_eq!(calls.finish_reason(Ending::Stop), "tool_calls");
        assert_eq!(calls.finish_reason(Ending::Length), "length");
        calls.delta(Part::Call("g".into()));
        calls.delta(Part::Arguments("{}".into()));
        let rest = calls.delta(Part::NoCall { text: "{...}; or".into(), unseen: 4 });
        assert_eq!(rest.and_then(|delta| delta.content), Some("; or".into()));
        assert_eq!(calls.finish_reason(Ending::Stop), "stop");
    }
}
