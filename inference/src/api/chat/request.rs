//! The body of a chat request.

use crate::api::error::ApiError;
use crate::api::messages::CHAT;
use crate::api::parameters::{Fields, Integer, Parameters};
use crate::api::tools::{self, Tools};
use lorikeet_compute::model::ChatMessage;

pub const MAX_TOKENS: Integer = Integer {
    name: "max_tokens",
    least: 1,
    most: u32::MAX,
    what: "Most tokens of an answer; the older name of `max_completion_tokens`.",
};
pub const MAX_COMPLETION_TOKENS: Integer = Integer {
    name: "max_completion_tokens",
    least: 1,
    most: u32::MAX,
    what: "Most tokens of an answer. Without it, as many as the context has room for.",
};
pub const TOP_LOGPROBS: Integer = Integer {
    name: "top_logprobs",
    least: 0,
    most: 20,
    what: "So many of the likeliest tokens at each place, with their log probabilities.",
};

#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub parameters: Parameters,
    pub messages: Vec<ChatMessage>,
    pub tools: Tools,
    /// Fields that were passed over.
    pub ignored: Vec<&'static str>,
}

impl ChatRequest {
    pub fn read(mut fields: Fields, vocab_size: u32, random_seed: u64) -> Result<Self, ApiError> {
        let parameters = Parameters::take(&mut fields, vocab_size, random_seed)?;
        let older = fields.integer(&MAX_TOKENS)?;
        let parameters = Parameters {
            max_tokens: fields.integer(&MAX_COMPLETION_TOKENS)?.or(older),
            logprobs: logprobs(&mut fields)?,
            ..parameters
        };
        let messages = CHAT.read(fields.required(CHAT.field)?)?;
        fields.pass("modalities", |value| *value == serde_json::json!(["text"]));
        let tools = tools::CHAT.take(&mut fields)?;
        // The older names of tools.
        fields.pass("functions", |value| value.as_array().is_some_and(Vec::is_empty));
        fields.pass("function_call", |value| value == "none" || value == "auto");
        Ok(Self { parameters, messages, tools, ignored: fields.finish()? })
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.integer(&TOP_LOGPROBS)?.unwrap_or(0);
    if top > 0 && !wanted {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true."));
    }
    Ok(wanted.then_some(top as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(extra: Value) -> Result<ChatRequest, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let Value::Object(fields) = body else { panic!("an object") };
        ChatRequest::read(Fields::new(fields), 100, 77)
    }

    /// The field that the error names.
    fn refused(extra: Value) -> String {
        match read(extra.clone()) {
            Err(ApiError::Invalid { param, .. }) => param.unwrap_or_default(),
            other => panic!("{extra}: {other:?}"),
        }
    }

    #[test]
    fn a_plain_request_has_the_defaults_of_openai() {
        let parameters = read(json!({})).expect("a request").parameters;
        assert_eq!((parameters.max_tokens, parameters.logprobs), (None, None));
    }

    #[test]
    fn limits_and_log_probabilities_are_read_under_either_name() {
        let limits = json!({"max_tokens": 5, "max_completion_tokens": 6});
        assert_eq!(read(limits).expect("a request").parameters.max_tokens, Some(6));
        let older = json!({"max_tokens": 5, "logprobs": true, "top_logprobs": 2});
        let parameters = read(older).expect("a request").parameters;
        assert_eq!((parameters.max_tokens, parameters.logprobs), (Some(5), Some(2)));
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name_and_the_rest_is_passed_over() {
        for field in [
            json!({"tool_choice": "required"}),
            json!({"parallel_tool_calls": "yes"}),
            json!({"functions": [{"name": "f"}]}),
            json!({"response_format": {"type": "xml"}}),
            json!({"reasoning_effort": "high"}),
            json!({"suffix": "x"}),
            json!({"max_tokens": 0}),
            json!({"max_completion_tokens": 0}),
            json!({"top_logprobs": 5}),
            json!({"messages": []}),
        ] {
            let name = field.as_object().and_then(|f| f.keys().next().cloned()).expect("a field");
            assert_eq!(refused(field), name);
        }
        let harmless = json!({
            "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "audio": null,
        });
        assert_eq!(read(harmless).expect("a request").ignored, [""; 0]);
    }
}
