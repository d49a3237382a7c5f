//! The body of a request for a response.

use crate::api::error::ApiError;
use crate::api::messages::RESPONSES;
use crate::api::parameters::{Fields, Integer, Parameters, grammar};
use crate::api::tools::{self, Tools};
use lorikeet_compute::model::ChatMessage;
use serde::Deserialize;
use serde_json::{Map, Value};

pub const MAX_OUTPUT_TOKENS: Integer = Integer {
    name: "max_output_tokens",
    least: 1,
    most: u32::MAX,
    what: "Most tokens of the answer. Without it, as many as the context has room for.",
};
pub const TOP_LOGPROBS: Integer = Integer {
    name: "top_logprobs",
    least: 0,
    most: 20,
    what: "So many of the likeliest tokens at each place, with their log probabilities.",
};

/// What may be included beside the answer.
pub const LOGPROBS: &str = "message.output_text.logprobs";

#[derive(Debug, Clone, PartialEq)]
pub struct ResponseRequest {
    pub parameters: Parameters,
    /// The instructions first.
    pub messages: Vec<ChatMessage>,
    pub repeated: Repeated,
    /// Fields that were passed over.
    pub ignored: Vec<&'static str>,
}

/// What the response says again.
#[derive(Debug, Clone, PartialEq)]
pub struct Repeated {
    pub instructions: Option<String>,
    /// Of the text.
    pub format: Value,
    pub tools: Tools,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of items is wanted")]
enum Input {
    Text(String),
    Items(Vec<Map<String, Value>>),
}

impl ResponseRequest {
    pub fn read(mut fields: Fields, vocab_size: u32, random_seed: u64) -> Result<Self, ApiError> {
        let parameters = Parameters::take(&mut fields, vocab_size, random_seed)?;
        if parameters.n > 1 {
            return Err(ApiError::invalid("n", "A response has one answer: leave `n` out."));
        }
        let (format, formed) = grammar::take_text(&mut fields)?;
        if let (Some(formed), Some(other)) = (&formed, &parameters.grammar) {
            return Err(formed.excluded_by(other));
        }
        let parameters = Parameters {
            grammar: formed.or(parameters.grammar),
            max_tokens: fields.integer(&MAX_OUTPUT_TOKENS)?,
            logprobs: logprobs(&mut fields)?,
            ..parameters
        };
        let instructions: Option<String> = fields.take("instructions")?;
        let mut messages = match fields.required(RESPONSES.field)? {
            Input::Text(content) => vec![ChatMessage::new("user", content)],
            Input::Items(items) => RESPONSES.read(items)?,
        };
        if let Some(content) = instructions.clone() {
            messages.insert(0, ChatMessage::new("system", content));
        }
        let tools = tools::RESPONSES.take(&mut fields)?;
        fields.pass("truncation", |value| value == "disabled");
        fields.pass("background", |value| *value == Value::Bool(false));
        let repeated = Repeated { instructions, format, tools };
        Ok(Self { parameters, messages, repeated, ignored: fields.finish()? })
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let include: Vec<String> = fields.take("include")?.unwrap_or_default();
    if let Some(other) = include.iter().find(|name| *name != LOGPROBS) {
        let message = format!("`{other}` cannot be included, only `{LOGPROBS}` can.");
        return Err(ApiError::invalid("include", message));
    }
    let top = fields.integer(&TOP_LOGPROBS)?.unwrap_or(0);
    if top > 0 && include.is_empty() {
        let message = format!("`top_logprobs` needs `include`: [\"{LOGPROBS}\"].");
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok((!include.is_empty()).then_some(top as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(more: Value) -> Result<ResponseRequest, ApiError> {
        let mut body = json!({ "model": "m", "input": "hi" });
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let Value::Object(fields) = body else { panic!("an object") };
        ResponseRequest::read(Fields::new(fields), 100, 77)
    }

    #[test]
    fn a_text_is_a_users_and_the_instructions_come_first() {
        let message = |role: &str, content: &str| ChatMessage::new(role, content);
        let request = read(json!({ "instructions": "Be brief." })).expect("a request");
        assert_eq!(request.messages, [message("system", "Be brief."), message("user", "hi")]);
        let items = json!([
            { "role": "user", "content": "hi" },
            { "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
              "content": [{ "type": "output_text", "text": "ho", "annotations": [] }] },
        ]);
        let request = read(json!({ "input": items })).expect("a request");
        assert_eq!(request.messages, [message("user", "hi"), message("assistant", "ho")]);
    }

    #[test]
    fn what_needs_memory_or_is_not_supported_is_refused_by_name() {
        for field in [
            json!({ "previous_response_id": "resp_1" }),
            json!({ "conversation": "conv_1" }),
            json!({ "background": true }),
            json!({ "truncation": "auto" }),
            json!({ "text": { "format": { "type": "xml" } } }),
            json!({ "text": { "verbosity": "low" } }),
            json!({ "text": { "format": { "type": "json_object" } }, "guided_regex": "a" }),
            json!({ "tool_choice": { "type": "function", "name": "f" } }),
            json!({ "reasoning": { "effort": "high" } }),
            json!({ "include": ["reasoning.encrypted_content"] }),
            json!({ "top_logprobs": 2 }),
            json!({ "n": 2 }),
            json!({ "input": 5 }),
            json!({ "max_output_tokens": 0 }),
        ] {
            let name = field.as_object().and_then(|f| f.keys().next().cloned()).expect("a field");
            match read(field.clone()) {
                Err(ApiError::Invalid { param, .. }) => assert_eq!(param, Some(name)),
                other => panic!("{field}: {other:?}"),
            }
        }
        let harmless = json!({
            "store": true, "text": { "format": { "type": "text" } }, "tools": [],
            "truncation": "disabled", "background": false, "include": [LOGPROBS],
            "top_logprobs": 3, "max_output_tokens": 9,
        });
        let request = read(harmless).expect("a request");
        assert_eq!(request.ignored, ["store"]);
        let Parameters { logprobs, max_tokens, .. } = request.parameters;
        assert_eq!((logprobs, max_tokens), (Some(3), Some(9)));
    }
}
