//! What a response consists of: messages, and calls of functions.

use crate::api::generation::TokenLogprob;
use crate::api::tools::new_call_id;
use serde_json::{Value, json};

pub struct Item {
    pub id: String,
    /// None: it is being made.
    pub status: Option<Status>,
    pub content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Completed,
    Incomplete,
}

pub enum Content {
    Message { text: String, logprobs: Vec<TokenLogprob> },
    Call { id: String, name: String, arguments: String },
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

impl Item {
    pub fn message(id: String) -> Self {
        let content = Content::Message { text: String::new(), logprobs: Vec::new() };
        Self { id, status: None, content }
    }

    pub fn call(name: String) -> Self {
        let content = Content::Call { id: new_call_id(), name, arguments: String::new() };
        Self { id: format!("fc_{}", uuid::Uuid::new_v4().simple()), status: None, content }
    }

    pub fn is_message(&self) -> bool {
        matches!(self.content, Content::Message { .. })
    }

    /// As it is announced: nothing is in it yet.
    pub fn announcement(&self) -> Value {
        match &self.content {
            Content::Message { .. } => self.message_with(json!([])),
            Content::Call { .. } => self.value(),
        }
    }

    pub fn value(&self) -> Value {
        match &self.content {
            Content::Message { .. } => self.message_with(json!([self.part()])),
            Content::Call { id, name, arguments } => json!({
                "id": self.id,
                "type": "function_call",
                "status": self.status_name(),
                "call_id": id,
                "name": name,
                "arguments": arguments,
            }),
        }
    }

    /// The one part of a message; null for a call.
    pub fn part(&self) -> Value {
        let Content::Message { text, logprobs } = &self.content else { return Value::Null };
        json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs })
    }

    fn message_with(&self, content: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": self.status_name(),
            "content": content,
        })
    }

    fn status_name(&self) -> &'static str {
        self.status.map_or("in_progress", Status::name)
    }
}
