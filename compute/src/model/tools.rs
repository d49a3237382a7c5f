//! How models are told of tools, and how they write calls of them.

use super::ChatMessage;
use super::python::{self, JsonStyle};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// One call, as templates read it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: FunctionCall,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FunctionCall {
    pub name: String,
    /// An object.
    pub arguments: Value,
}

impl ToolCall {
    pub fn new(id: String, name: String, arguments: Map<String, Value>) -> Self {
        let function = FunctionCall { name, arguments: arguments.into() };
        Self { id, kind: "function", function }
    }
}

/// How a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `{"name": "f", "parameters": {}}`, several of them behind `; `, and sometimes `<|python_tag|>`
    /// before them.
    Llama3,
    /// `<tool_call>{"name": "f", "arguments": {}}</tool_call>`, one behind the other.
    Hermes,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {}}]`
    Mistral,
    /// `[TOOL_CALLS]f[ARGS]{}`, one behind the other; since version 11 of Mistral's tokenizers, and in that
    /// with `[CALL_ID]` and an id before `[ARGS]`.
    MistralV11,
}

impl ToolFormat {
    /// What [`Self::MistralV11`] has between a function's name and the arguments.
    pub const CALL_ID: &str = "[CALL_ID]";
    pub const ARGS: &str = "[ARGS]";

    /// That of the examples in the template. One that shows none is of Hermes' kind, which most
    /// fine-tuned models know.
    pub fn of_template(source: &str) -> Self {
        if source.contains("[TOOL_CALLS]") {
            if source.contains(Self::ARGS) { Self::MistralV11 } else { Self::Mistral }
        } else if source.contains("<tool_call>") {
            Self::Hermes
        } else if ["<|python_tag|>", "\"parameters\": "].iter().any(|mark| source.contains(mark)) {
            Self::Llama3
        } else {
            Self::Hermes
        }
    }

    /// What stands before a call. A bare object that begins a line may be a call, too, in
    /// [`Self::Llama3`].
    pub fn opening(self) -> &'static str {
        match self {
            Self::Llama3 => "<|python_tag|>",
            Self::Hermes => "<tool_call>",
            Self::Mistral | Self::MistralV11 => "[TOOL_CALLS]",
        }
    }

    /// Everything in a call that may be a special token.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Llama3 => &["<|python_tag|>"],
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Mistral | Self::MistralV11 => &["[TOOL_CALLS]", Self::CALL_ID, Self::ARGS],
        }
    }

    /// What stands behind one.
    pub fn closing(self) -> Option<&'static str> {
        (self == Self::Hermes).then_some("</tool_call>")
    }

    /// What a call's arguments are called.
    pub fn arguments(self) -> &'static str {
        if self == Self::Llama3 { "parameters" } else { "arguments" }
    }

    /// Mistral's templates refuse ids that are not nine letters and digits. Any other becomes nine, a
    /// call's and its answer's alike.
    pub(super) fn fit_ids(self, messages: &mut [ChatMessage]) {
        if !matches!(self, Self::Mistral | Self::MistralV11) {
            return;
        }
        for message in messages {
            let calls = message.tool_calls.iter_mut().map(|call| &mut call.id);
            calls.chain(&mut message.tool_call_id).for_each(fit_id);
        }
    }

    /// For a template that knows no tools: the first turn tells of them, and calls and answers are text.
    pub(super) fn as_text(self, messages: Vec<ChatMessage>, tools: &[Value]) -> Vec<ChatMessage> {
        let mut turns: Vec<ChatMessage> = Vec::with_capacity(messages.len() + 1);
        let mut answers = false;
        for message in messages {
            if message.role != "tool" {
                answers = false;
                turns.push(ChatMessage::new(
                    message.role,
                    self.said(&message.content, &message.tool_calls),
                ));
                continue;
            }
            let answer = format!("<tool_response>\n{}\n</tool_response>", message.content);
            match turns.last_mut() {
                Some(turn) if answers => turn.content = format!("{}\n{answer}", turn.content),
                _ => turns.push(ChatMessage::new("user", answer)),
            }
            answers = true;
        }
        if tools.is_empty() {
            return turns;
        }
        let manual = self.manual(tools);
        match turns.first_mut().filter(|turn| turn.role == "system") {
            Some(system) => system.content = format!("{}\n\n{manual}", system.content),
            None => turns.insert(0, ChatMessage::new("system", manual)),
        }
        turns
    }

    fn said(self, content: &str, calls: &[ToolCall]) -> String {
        if calls.is_empty() {
            return content.to_owned();
        }
        let calls = calls.iter().map(|ToolCall { function, .. }| {
            let arguments = python_json(&function.arguments);
            self.call(&python_json(&function.name.as_str().into()), &arguments)
        });
        let calls = self.written(&calls.collect::<Vec<_>>());
        if content.is_empty() { calls } else { format!("{content}\n{calls}") }
    }

    /// One call, its name and its arguments as JSON.
    fn call(self, name: &str, arguments: &str) -> String {
        if self == Self::MistralV11 {
            return format!("{}{}{arguments}", name.trim_matches('"'), Self::ARGS);
        }
        format!("{{\"name\": {name}, \"{}\": {arguments}}}", self.arguments())
    }

    fn written(self, calls: &[String]) -> String {
        match self {
            Self::Llama3 => calls.join("; "),
            Self::Hermes => {
                let calls = calls.iter().map(|call| format!("<tool_call>\n{call}\n</tool_call>"));
                calls.collect::<Vec<_>>().join("\n")
            }
            Self::Mistral => format!("[TOOL_CALLS][{}]", calls.join(", ")),
            Self::MistralV11 => {
                calls.iter().map(|call| format!("[TOOL_CALLS]{call}")).collect::<String>()
            }
        }
    }

    /// In the words that Qwen's templates use.
    fn manual(self, tools: &[Value]) -> String {
        let mut manual = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
                          You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
            .to_owned();
        for tool in tools {
            // A string takes all that is written.
            let _ = write!(manual, "\n{}", python_json(tool));
        }
        let example = self.written(&[self.call("<function-name>", "<args-json-object>")]);
        manual
            + "\n</tools>\n\nFor each function call, answer with the function's name and a JSON object of its \
                  arguments in this form:\n"
            + &example
    }
}

/// As templates write it.
fn python_json(value: &Value) -> String {
    python::json(value, JsonStyle::default()).expect("a JSON value is JSON")
}

fn fit_id(id: &mut String) {
    if id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return;
    }
    let digest: [u8; 32] = Sha256::digest(id.as_bytes()).into();
    *id = hex::encode(digest);
    id.truncate(9);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_format_is_that_of_the_templates_examples() {
        for (source, format) in [
            ("{{ '[TOOL_CALLS] [' }}{{ tool_call|tojson }}", ToolFormat::Mistral),
            ("{{ '[TOOL_CALLS]' + tool.name + '[ARGS]' }}", ToolFormat::MistralV11),
            ("{{- '<tool_call>\\n{\"name\": \"' }}", ToolFormat::Hermes),
            ("{{- \"<|python_tag|>\" + tool_call.name }}", ToolFormat::Llama3),
            ("{{- '\"parameters\": ' }}", ToolFormat::Llama3),
            ("{{ messages[0].content }}", ToolFormat::Hermes),
        ] {
            assert_eq!(ToolFormat::of_template(source), format, "{source}");
        }
    }

    #[test]
    fn a_template_without_tools_gets_them_as_text() {
        let city = Map::from_iter([("city".to_owned(), json!("Graz"))]);
        let call = |id: &str| ToolCall::new(id.into(), "weather".into(), city.clone());
        let messages = vec![
            ChatMessage::new("user", "How is it?"),
            ChatMessage {
                tool_calls: vec![call("1"), call("2")],
                ..ChatMessage::new("assistant", "Let me see.")
            },
            ChatMessage { tool_call_id: Some("1".into()), ..ChatMessage::new("tool", "sunny") },
            ChatMessage { tool_call_id: Some("2".into()), ..ChatMessage::new("tool", "warm") },
        ];
        let tool = json!({ "type": "function", "function": { "name": "weather" } });
        let turns = ToolFormat::Hermes.as_text(messages.clone(), &[tool]);
        let [system, user, assistant, answers] = &turns[..] else { panic!("{turns:?}") };
        assert!(
            system.content.contains(r#"{"type": "function", "function": {"name": "weather"}}"#)
        );
        assert!(system.content.ends_with("</tool_call>"));
        assert_eq!(user.content, "How is it?");
        let call = r#"<tool_call>
{"name": "weather", "arguments": {"city": "Graz"}}
</tool_call>"#;
        assert_eq!(assistant.content, format!("Let me see.\n{call}\n{call}"));
        let expected =
            "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n</tool_response>";
        assert_eq!((answers.role.as_str(), answers.content.as_str()), ("user", expected));
        let turns = ToolFormat::MistralV11.as_text(messages.clone(), &[]);
        let call = r#"[TOOL_CALLS]weather[ARGS]{"city": "Graz"}"#;
        assert_eq!(turns[1].content, format!("Let me see.\n{call}{call}"));
        assert_eq!(ToolFormat::Hermes.as_text(messages, &[])[0].role, "user");
    }

    #[test]
    fn ids_that_mistral_refuses_are_replaced_alike_in_a_call_and_its_answer() {
        let mut messages = [
            ChatMessage {
                tool_calls: vec![ToolCall::new("call_0123456789".into(), "f".into(), Map::new())],
                ..ChatMessage::new("assistant", "")
            },
            ChatMessage {
                tool_call_id: Some("call_0123456789".into()),
                ..ChatMessage::new("tool", "x")
            },
            ChatMessage { tool_call_id: Some("abcDEF123".into()), ..ChatMessage::new("tool", "x") },
        ];
        ToolFormat::Mistral.fit_ids(&mut messages);
        let id = messages[0].tool_calls[0].id.clone();
        assert_eq!(id.len(), 9);
        assert_eq!(messages[1].tool_call_id, Some(id));
        assert_eq!(messages[2].tool_call_id.as_deref(), Some("abcDEF123"));
    }
}
