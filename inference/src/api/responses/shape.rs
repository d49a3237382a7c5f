//! OpenAI's `response`, and the events of its stream in their order: created, in_progress, each item
//! with its parts and deltas, and what was opened is closed again, innermost first.

use super::items::{Content, Item, Status};
use super::request::Repeated;
use crate::api::error::ApiError;
use crate::api::generation::{Counts, Ending, Piece, TokenLogprob};
use crate::api::models::Model;
use crate::api::parameters::Parameters;
use crate::api::shape::{Call, Choice, Events, Shape};
use crate::api::tools::{Part, ToolChoice, Tools};
use lorikeet_contract::RequestId;
use serde::Serialize;
use serde_json::{Value, json};

pub struct ResponseShape {
    id: String,
    /// Of its first message.
    item_id: String,
    /// All of the response that does not change while it is made.
    frame: Value,
    /// All are closed but for the last, perhaps.
    items: Vec<Item>,
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
struct TextDelta<'a> {
    item_id: &'a str,
    output_index: usize,
    content_index: u32,
    delta: &'a str,
    logprobs: &'a [TokenLogprob],
}

impl ResponseShape {
    pub fn new(
        request: RequestId,
        model: &Model,
        parameters: &Parameters,
        repeated: Repeated,
    ) -> Self {
        let id = request.as_uuid().simple();
        let Repeated { instructions, format, tools } = repeated;
        let frame = json!({
            "object": "response",
            "created_at": crate::durable::unix_ms() / 1000,
            "background": false,
            "instructions": instructions,
            "max_output_tokens": parameters.max_tokens,
            "metadata": parameters.metadata,
            "model": model.name,
            "system_fingerprint": model.fingerprint,
            "parallel_tool_calls": tools.parallel,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "store": false,
            "temperature": parameters.sampling.temperature,
            "text": { "format": format },
            "tool_choice": tool_choice(&tools),
            "tools": repeated_tools(&tools),
            "top_logprobs": parameters.logprobs.unwrap_or(0),
            "top_p": parameters.sampling.top_p,
            "truncation": "disabled",
        });
        Self {
            id: format!("resp_{id}"),
            item_id: format!("msg_{id}"),
            frame,
            items: Vec::new(),
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

    fn output(&self) -> Value {
        self.items.iter().map(Item::value).collect()
    }

    /// Of a response that has ended.
    fn status(&self) -> Status {
        match self.ending {
            Some(Ending::Length) => Status::Incomplete,
            Some(Ending::Stop) | None => Status::Completed,
        }
    }

    fn new_message(&self) -> Item {
        let others = self.items.iter().filter(|item| item.is_message()).count();
        let id = self.item_id.clone();
        Item::message(if others == 0 { id } else { format!("{id}_{others}") })
    }

    fn push(&mut self, kind: &str, data: impl Serialize, out: &mut Events) {
        let event = Event { r#type: kind, sequence_number: self.sequence_number, data };
        self.sequence_number += 1;
        out.push_named(kind, &event);
    }

    /// About the last item.
    fn push_of_item(&mut self, kind: &str, mut data: Value, out: &mut Events) {
        if let Some(item) = self.items.last() {
            data["item_id"] = json!(item.id);
            data["output_index"] = json!(self.items.len() - 1);
            self.push(kind, data, out);
        }
    }

    fn open(&mut self, item: Item, out: &mut Events) {
        self.close_item(Status::Completed, out);
        let added = json!({ "output_index": self.items.len(), "item": item.announcement() });
        let (is_message, part) = (item.is_message(), item.part());
        self.items.push(item);
        self.push("response.output_item.added", added, out);
        if is_message {
            let part = json!({ "content_index": 0, "part": part });
            self.push_of_item("response.content_part.added", part, out);
        }
    }

    /// The last item, if it is open.
    fn close_item(&mut self, status: Status, out: &mut Events) {
        let Some(item) = self.items.last_mut().filter(|item| item.status.is_none()) else { return };
        item.status = Some(status);
        let (whole, part) = (item.value(), item.part());
        match &item.content {
            Content::Message { text, logprobs } => {
                let text = json!({ "content_index": 0, "text": text, "logprobs": logprobs });
                self.push_of_item("response.output_text.done", text, out);
                let part = json!({ "content_index": 0, "part": part });
                self.push_of_item("response.content_part.done", part, out);
            }
            Content::Call { name, arguments, .. } => {
                let done = json!({ "name": name, "arguments": arguments });
                self.push_of_item("response.function_call_arguments.done", done, out);
            }
        }
        let done = json!({ "output_index": self.items.len() - 1, "item": whole });
        self.push("response.output_item.done", done, out);
    }

    fn text(&mut self, more: &str, tokens: Vec<TokenLogprob>, out: &mut Events) {
        if !self.items.last().is_some_and(|item| item.is_message() && item.status.is_none()) {
            self.open(self.new_message(), out);
        }
        let output_index = self.items.len() - 1;
        let Some(Item { id, content: Content::Message { text, logprobs }, .. }) =
            self.items.last_mut()
        else {
            return;
        };
        let data = TextDelta {
            item_id: id,
            output_index,
            content_index: 0,
            delta: more,
            logprobs: &tokens,
        };
        let kind = "response.output_text.delta";
        out.push_named(kind, &Event { r#type: kind, sequence_number: self.sequence_number, data });
        self.sequence_number += 1;
        *text += more;
        logprobs.extend(tokens);
    }

    fn arguments(&mut self, more: &str, out: &mut Events) {
        if let Some(Content::Call { arguments, .. }) =
            self.items.last_mut().map(|item| &mut item.content)
        {
            *arguments += more;
            let delta = json!({ "delta": more });
            self.push_of_item("response.function_call_arguments.delta", delta, out);
        }
    }
}

impl Shape for ResponseShape {
    fn whole(mut self, choices: Vec<Choice>, counts: Counts) -> Value {
        if let Some(Choice { text, calls, logprobs, ending, .. }) = choices.into_iter().next() {
            self.ending = Some(ending);
            let status = Some(self.status());
            if !text.is_empty() || calls.is_empty() {
                let content = Content::Message { text, logprobs };
                self.items.push(Item { content, status, ..self.new_message() });
            }
            for Call { name, arguments } in calls {
                let mut item = Item { status: Some(Status::Completed), ..Item::call(name) };
                if let Content::Call { arguments: empty, .. } = &mut item.content {
                    *empty = arguments;
                }
                self.items.push(item);
            }
        }
        self.response(self.status().name(), self.output(), Some(counts))
    }

    fn opening(&mut self, out: &mut Events) {
        let begun = self.response("in_progress", json!([]), None);
        self.push("response.created", json!({ "response": begun }), out);
        self.push("response.in_progress", json!({ "response": begun }), out);
    }

    /// The log probabilities of calls are not told: there is no place for them.
    fn piece(&mut self, _: usize, piece: Piece, out: &mut Events) {
        let mut logprobs = piece.logprobs;
        for part in piece.parts {
            match part {
                Part::Text(text) => self.text(&text, std::mem::take(&mut logprobs), out),
                Part::Call(name) => self.open(Item::call(name), out),
                Part::Arguments(more) => self.arguments(&more, out),
                Part::CallEnd => self.close_item(Status::Completed, out),
                Part::NoCall { text, unseen } => {
                    self.close_item(Status::Incomplete, out);
                    let rest = text.get(text.len() - unseen..).unwrap_or_default();
                    if !rest.is_empty() {
                        self.text(rest, Vec::new(), out);
                    }
                }
            }
        }
    }

    fn end(&mut self, _: usize, ending: Ending, out: &mut Events) {
        self.ending = Some(ending);
        if self.items.is_empty() {
            self.open(self.new_message(), out);
        }
        self.close_item(self.status(), out);
    }

    fn close(&mut self, counts: Counts, out: &mut Events) {
        let status = self.status().name();
        let response = self.response(status, self.output(), Some(counts));
        self.push(&format!("response.{status}"), json!({ "response": response }), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        let mut response = self.response("failed", json!([]), None);
        response["error"] = json!({ "code": error.outcome(), "message": error.to_string() });
        self.push("response.failed", json!({ "response": response }), out);
    }
}

fn tool_choice(tools: &Tools) -> Value {
    match tools.choice {
        ToolChoice::None => json!("none"),
        ToolChoice::Auto => json!("auto"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Named(index) => {
            json!({ "type": "function", "name": tools.functions[index].name })
        }
    }
}

fn repeated_tools(tools: &Tools) -> Value {
    let functions = tools.functions.iter().map(|function| {
        json!({
            "type": "function",
            "name": function.name,
            "description": function.description,
            "parameters": function.parameters,
            "strict": function.strict,
        })
    });
    functions.collect()
}
