//! The turns of a chat, as a request brings them.

use super::error::ApiError;
use super::parameters::Fields;
use lorikeet_compute::model::ChatMessage;
use serde_json::{Map, Value};

/// Where messages stand in a body, and what their parts of text are called there.
#[derive(Debug, Clone, Copy)]
pub struct MessageForm {
    pub field: &'static str,
    pub text_parts: &'static [&'static str],
}

pub const CHAT: MessageForm = MessageForm { field: "messages", text_parts: &["text"] };
pub const RESPONSES: MessageForm =
    MessageForm { field: "input", text_parts: &["input_text", "output_text"] };

impl MessageForm {
    pub fn read(&self, raw: Vec<Map<String, Value>>) -> Result<Vec<ChatMessage>, ApiError> {
        if raw.is_empty() {
            return Err(ApiError::invalid(self.field, "There is no message."));
        }
        let messages = raw.into_iter().enumerate().map(|(index, fields)| {
            self.message(Fields::new(fields)).map_err(|e| self.within(index, e))
        });
        messages.collect()
    }

    /// The error with its place in the body.
    fn within(&self, index: usize, error: ApiError) -> ApiError {
        match error {
            ApiError::Invalid { message, param: Some(param) } => {
                ApiError::invalid(format!("{}[{index}].{param}", self.field), message)
            }
            error => error,
        }
    }

    fn message(&self, mut fields: Fields) -> Result<ChatMessage, ApiError> {
        let kind: Option<String> = fields.take("type")?;
        if let Some(kind) = kind.filter(|kind| kind != "message") {
            let message = format!("An item of type `{kind}` is not supported, only a message is.");
            return Err(ApiError::invalid("type", message));
        }
        let role: String = fields.required("role")?;
        let role = match role.as_str() {
            "system" | "user" | "assistant" => role,
            // The newer name of the same part of a chat.
            "developer" => "system".into(),
            other => {
                let message = format!("The role `{other}` is not supported.");
                return Err(ApiError::invalid("role", message));
            }
        };
        let content = self.content(fields.required("content")?)?;
        for field in ["tool_calls", "function_call", "audio"] {
            if fields.take::<Value>(field)?.is_some() {
                let message = format!("The field `{field}` of a message is not supported.");
                return Err(ApiError::invalid(field, message));
            }
        }
        Ok(ChatMessage { role, content })
    }

    fn content(&self, content: Value) -> Result<String, ApiError> {
        let parts = match content {
            Value::String(text) => return Ok(text),
            Value::Array(parts) => parts,
            _ => {
                return Err(ApiError::invalid("content", "A message's content is text or parts."));
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
                    return Err(ApiError::invalid("content", message));
                }
            }
        }
        Ok(text)
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
        let expected = [ChatMessage { role: "system".into(), content: "ab".into() }];
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
            (json!({"role": "tool", "content": "x"}), "messages[1].role"),
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
}
