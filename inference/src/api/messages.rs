//! The turns of a chat, as a request brings them.

use super::error::ApiError;
use super::parameters::Fields;
use lorikeet_compute::model::{ChatMessage, ToolCall};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Where messages stand in a body, and what their parts of text are called there.
#[derive(Debug, Clone, Copy)]
pub struct MessageForm {
    pub field: &'static str,
    pub text_parts: &'static [&'static str],
    /// Calls and their answers are items of their own there.
    pub call_items: bool,
}

pub const CHAT: MessageForm =
    MessageForm { field: "messages", text_parts: &["text"], call_items: false };
pub const RESPONSES: MessageForm =
    MessageForm { field: "input", text_parts: &["input_text", "output_text"], call_items: true };

impl MessageForm {
    pub fn read(&self, raw: Vec<Map<String, Value>>) -> Result<Vec<ChatMessage>, ApiError> {
        if raw.is_empty() {
            return Err(ApiError::invalid(self.field, "There is no message."));
        }
        let mut messages: Vec<ChatMessage> = Vec::with_capacity(raw.len());
        for (index, fields) in raw.into_iter().enumerate() {
            let message = self.item(Fields::new(fields));
            let message = message.map_err(|e| e.within(format_args!("{}[{index}]", self.field)))?;
            match messages.last_mut() {
                // Calls that are items of their own belong to the turn before.
                Some(turn) if self.call_items && continues(turn, &message) => {
                    turn.tool_calls.extend(message.tool_calls);
                }
                _ => messages.push(message),
            }
        }
        name_answers(&mut messages);
        Ok(messages)
    }

    fn item(&self, mut fields: Fields) -> Result<ChatMessage, ApiError> {
        let kind: Option<String> = fields.take("type")?;
        match kind.as_deref() {
            None | Some("message") => self.message(fields),
            Some("function_call") if self.call_items => {
                let id = fields.required("call_id")?;
                let calls = vec![call(id, &mut fields)?];
                Ok(ChatMessage { tool_calls: calls, ..ChatMessage::new("assistant", "") })
            }
            Some("function_call_output") if self.call_items => Ok(ChatMessage {
                tool_call_id: Some(fields.required("call_id")?),
                ..ChatMessage::new("tool", self.content("output", fields.required("output")?)?)
            }),
            Some(kind) => {
                let message = format!("An item of type `{kind}` is not supported.");
                Err(ApiError::invalid("type", message))
            }
        }
    }

    fn message(&self, mut fields: Fields) -> Result<ChatMessage, ApiError> {
        let role: String = fields.required("role")?;
        let role = match role.as_str() {
            "system" | "user" | "assistant" => role,
            "tool" if !self.call_items => {
                return Ok(ChatMessage {
                    tool_call_id: Some(fields.required("tool_call_id")?),
                    name: fields.take("name")?,
                    ..ChatMessage::new(role, self.content("content", fields.required("content")?)?)
                });
            }
            // The newer name of the same part of a chat.
            "developer" => "system".into(),
            other => {
                let message = format!("The role `{other}` is not supported.");
                return Err(ApiError::invalid("role", message));
            }
        };
        let tool_calls = match role.as_str() {
            "assistant" if !self.call_items => tool_calls(&mut fields)?,
            _ => Vec::new(),
        };
        let content = match fields.take("content")? {
            None if !tool_calls.is_empty() => String::new(),
            content => {
                let missing = || ApiError::invalid("content", "The field `content` is missing.");
                self.content("content", content.ok_or_else(missing)?)?
            }
        };
        for field in ["tool_calls", "function_call", "audio"] {
            if fields.take::<Value>(field)?.is_some() {
                let message = format!("The field `{field}` of a message is not supported.");
                return Err(ApiError::invalid(field, message));
            }
        }
        Ok(ChatMessage { tool_calls, ..ChatMessage::new(role, content) })
    }

    fn content(&self, field: &str, content: Value) -> Result<String, ApiError> {
        let parts = match content {
            Value::String(text) => return Ok(text),
            Value::Array(parts) => parts,
            _ => {
                return Err(ApiError::invalid(field, format!("`{field}` is text or parts.")));
            }
        };
        let mut text = String::new();
        for part in &parts {
            match (part["type"].as_str(), part["text"].as_str()) {
                (Some(kind), Some(part)) if self.text_parts.contains(&kind) => text.push_str(part),
                (kind, _) => {
                    let kind = kind.unwrap_or("without a type");
                    let message =
                        format!("A content part `{kind}` is not supported, only text is.");
                    return Err(ApiError::invalid(field, message));
                }
            }
        }
        Ok(text)
    }
}

fn tool_calls(fields: &mut Fields) -> Result<Vec<ToolCall>, ApiError> {
    let raw: Vec<Map<String, Value>> = fields.take("tool_calls")?.unwrap_or_default();
    let calls = raw.into_iter().enumerate().map(|(index, raw)| {
        let mut fields = Fields::new(raw);
        let id = fields.required("id");
        let function = fields.required("function").map(Fields::new);
        let call =
            id.and_then(|id| call(id, &mut function?).map_err(|error| error.within("function")));
        call.map_err(|error| error.within(format_args!("tool_calls[{index}]")))
    });
    calls.collect()
}

/// Templates take arguments as an object, and clients send them as text, as they got them.
fn call(id: String, fields: &mut Fields) -> Result<ToolCall, ApiError> {
    let name = fields.required("name")?;
    let arguments: String = fields.required("arguments")?;
    let arguments = match arguments.trim() {
        "" => Map::new(),
        text => serde_json::from_str(text).map_err(|_| {
            ApiError::invalid("arguments", "The arguments of a call are a JSON object, as text.")
        })?,
    };
    Ok(ToolCall::new(id, name, arguments))
}

/// Whether `next` is nothing but more calls of the same turn.
fn continues(turn: &ChatMessage, next: &ChatMessage) -> bool {
    turn.role == "assistant" && !next.tool_calls.is_empty() && next.content.is_empty()
}

/// Some templates name the function whose answer a turn is.
fn name_answers(messages: &mut [ChatMessage]) {
    let mut names = HashMap::new();
    for message in messages {
        for call in &message.tool_calls {
            names.insert(call.id.clone(), call.function.name.clone());
        }
        if let (Some(id), None) = (&message.tool_call_id, &message.name) {
            message.name = names.get(id).cloned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(form: MessageForm, messages: Value) -> Result<Vec<ChatMessage>, ApiError> {
        form.read(serde_json::from_value(messages).expect("objects"))
    }

    #[test]
    fn text_parts_are_joined_and_a_developer_is_the_system() {
        let expected = [ChatMessage::new("system", "ab")];
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let messages = json!([{"role": "developer", "content": parts}]);
        assert_eq!(read(CHAT, messages).expect("messages"), expected);
        let parts =
            json!([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}]);
        let messages = json!([{"type": "message", "role": "system", "content": parts}]);
        assert_eq!(read(RESPONSES, messages).expect("messages"), expected);
    }

    #[test]
    fn a_bad_message_is_named_by_its_place() {
        let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
        for (message, param) in [
            (json!({"role": "tool", "content": "x"}), "messages[1].tool_call_id"),
            (json!({"role": "function", "content": "x"}), "messages[1].role"),
            (json!({"role": "assistant", "content": null}), "messages[1].content"),
            (
                json!({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}]}),
                "messages[1].tool_calls[0].function.arguments",
            ),
            (json!({"role": "user"}), "messages[1].content"),
            (json!({"role": "user", "content": image}), "messages[1].content"),
            (json!({"type": "function_call", "role": "user"}), "messages[1].type"),
            (
                json!({"role": "assistant", "content": "", "tool_calls": [1]}),
                "messages[1].tool_calls",
            ),
        ] {
            let first = json!({"role": "user", "content": "hi"});
            match read(CHAT, json!([first, message])) {
                Err(ApiError::Invalid { param: named, .. }) => {
                    assert_eq!(named.as_deref(), Some(param));
                }
                other => panic!("{message}: {other:?}"),
            }
        }
        assert!(read(CHAT, json!([])).is_err());
    }

    #[test]
    fn calls_and_their_answers_read_alike_in_chats_and_responses() {
        let chat = json!([
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "x"}]},
            {"role": "tool", "tool_call_id": "1", "content": "y"},
        ]);
        let items = json!([
            {"role": "user", "content": "hi"},
            {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{\"a\": 1}"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}", "status": "completed"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call_output", "call_id": "1", "output": "y"},
        ]);
        let messages = read(CHAT, chat).expect("messages");
        assert_eq!(read(RESPONSES, items).expect("messages"), messages);
        let [_, assistant, second, first] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!(assistant.tool_calls[0].function.arguments, json!({"a": 1}));
        assert_eq!((second.name.as_deref(), first.name.as_deref()), (Some("g"), Some("f")));
        assert_eq!((second.content.as_str(), second.role.as_str()), ("x", "tool"));
    }
}
