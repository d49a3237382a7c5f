//! OpenAI's `response`, and the events of its stream in their order: created, in_progress, the output
//! item, its part, the deltas, and what was opened is closed again, innermost first.

use crate::api::error::ApiError;
use crate::api::generation::{Counts, Ending, Piece, TokenLogprob};
use crate::api::models::Model;
use crate::api::parameters::Parameters;
use crate::api::shape::{Choice, Events, Shape};
use lorikeet_contract::RequestId;
use serde::Serialize;
use serde_json::{Value, json};

pub struct ResponseShape {
    id: String,
    item_id: String,
    /// All of the response that does not change while it is made.
    frame: Value,
    text: String,
    logprobs: Vec<TokenLogprob>,
    ending: Option<Ending>,
    /// Of the next event.
    sequence_number: u64,
}

/// One event of the stream.
#[derive(Serialize)]
struct Event<'a, T> {
    r#type: &'a str,
    sequence_number: u64,
    #[serde(flatten)]
    data: T,
}

#[derive(Serialize)]
struct Delta<'a> {
    item_id: &'a str,
    output_index: u32,
    content_index: u32,
    delta: &'a str,
    logprobs: &'a [TokenLogprob],
}

impl ResponseShape {
    pub fn new(
        request: RequestId,
        model: &Model,
        parameters: &Parameters,
        instructions: Option<String>,
        format: Value,
    ) -> Self {
        let id = request.as_uuid().simple();
        let frame = json!({
            "object": "response",
            "created_at": crate::durable::unix_ms() / 1000,
            "background": false,
            "instructions": instructions,
            "max_output_tokens": parameters.max_tokens,
            "metadata": parameters.metadata,
            "model": model.name,
            "system_fingerprint": model.fingerprint,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "store": false,
            "temperature": parameters.sampling.temperature,
            "text": { "format": format },
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": parameters.logprobs.unwrap_or(0),
            "top_p": parameters.sampling.top_p,
            "truncation": "disabled",
        });
        Self {
            id: format!("resp_{id}"),
            item_id: format!("msg_{id}"),
            frame,
            text: String::new(),
            logprobs: Vec::new(),
            ending: None,
            sequence_number: 0,
        }
    }

    fn response(&self, status: &str, output: Value, usage: Option<Counts>) -> Value {
        let mut response = self.frame.clone();
        let cut = self.ending == Some(Ending::Length);
        let details = json!({ "reason": "max_output_tokens" });
        let usage = usage.map(|counts| {
            json!({
                "input_tokens": counts.prompt,
                "input_tokens_details": { "cached_tokens": counts.cached },
                "output_tokens": counts.completion,
                "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": u64::from(counts.prompt) + u64::from(counts.completion),
            })
        });
        response["id"] = json!(self.id);
        response["status"] = json!(status);
        response["error"] = Value::Null;
        response["incomplete_details"] = if cut { details } else { Value::Null };
        response["output"] = output;
        response["usage"] = json!(usage);
        response
    }

    fn status(&self) -> &'static str {
        match self.ending {
            None => "in_progress",
            Some(Ending::Stop) => "completed",
            Some(Ending::Length) => "incomplete",
        }
    }

    fn part(&self) -> Value {
        json!({
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        })
    }

    fn item(&self, content: Value) -> Value {
        json!({
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": self.status(),
            "content": content,
        })
    }

    fn push(&mut self, kind: &str, data: impl Serialize, out: &mut Events) {
        let event = Event { r#type: kind, sequence_number: self.sequence_number, data };
        self.sequence_number += 1;
        out.push_named(kind, &event);
    }
}

impl Shape for ResponseShape {
    fn whole(mut self, choices: Vec<Choice>, counts: Counts) -> Value {
        if let Some(choice) = choices.into_iter().next() {
            self.text = choice.text;
            self.logprobs = choice.logprobs;
            self.ending = Some(choice.ending);
        }
        let output = json!([self.item(json!([self.part()]))]);
        self.response(self.status(), output, Some(counts))
    }

    fn opening(&mut self, out: &mut Events) {
        let begun = self.response("in_progress", json!([]), None);
        self.push("response.created", json!({ "response": begun }), out);
        self.push("response.in_progress", json!({ "response": begun }), out);
        let item = json!({ "output_index": 0, "item": self.item(json!([])) });
        self.push("response.output_item.added", item, out);
        let part = json!({
            "item_id": self.item_id, "output_index": 0, "content_index": 0, "part": self.part(),
        });
        self.push("response.content_part.added", part, out);
    }

    fn piece(&mut self, _: usize, piece: Piece, out: &mut Events) {
        let delta = Delta {
            item_id: &self.item_id,
            output_index: 0,
            content_index: 0,
            delta: &piece.text,
            logprobs: &piece.logprobs,
        };
        let kind = "response.output_text.delta";
        let event = Event { r#type: kind, sequence_number: self.sequence_number, data: delta };
        out.push_named(kind, &event);
        self.sequence_number += 1;
        self.text += &piece.text;
        self.logprobs.extend(piece.logprobs);
    }

    fn end(&mut self, _: usize, ending: Ending, out: &mut Events) {
        self.ending = Some(ending);
        let text = json!({
            "item_id": self.item_id, "output_index": 0, "content_index": 0,
            "text": self.text, "logprobs": self.logprobs,
        });
        self.push("response.output_text.done", text, out);
        let part = json!({
            "item_id": self.item_id, "output_index": 0, "content_index": 0, "part": self.part(),
        });
        self.push("response.content_part.done", part, out);
        let item = json!({ "output_index": 0, "item": self.item(json!([self.part()])) });
        self.push("response.output_item.done", item, out);
    }

    fn close(&mut self, counts: Counts, out: &mut Events) {
        let output = json!([self.item(json!([self.part()]))]);
        let response = self.response(self.status(), output, Some(counts));
        let kind = format!("response.{}", self.status());
        self.push(&kind, json!({ "response": response }), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        let mut response = self.response("failed", json!([]), None);
        let code = error.code().unwrap_or("server_error");
        response["error"] = json!({ "code": code, "message": error.to_string() });
        self.push("response.failed", json!({ "response": response }), out);
    }
}
