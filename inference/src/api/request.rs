//! The body of a chat request, read field by field so that an error names the field. A field that
//! would change the answer and is not supported is refused; one that would not is ignored.

use super::error::ApiError;
use crate::model::ChatMessage;
use crate::sampling::SamplingParams;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Most stop strings of one request, as OpenAI has it, and most bytes of one.
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 1024;
const MAX_TOP_LOGPROBS: u8 = 20;

/// Fields for the client's own bookkeeping.
const IGNORED: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    pub messages: Vec<ChatMessage>,
    pub params: SamplingParams,
    pub stop: Vec<String>,
    /// None: as much as the context holds.
    pub max_tokens: Option<u32>,
    /// Log probabilities, with this many alternatives.
    pub logprobs: Option<u8>,
    pub stream: bool,
    /// A last chunk of the stream carries the token counts.
    pub include_usage: bool,
}

impl ChatRequest {
    /// `random_seed` is used when the request brings none.
    pub fn parse(body: &[u8], random_seed: u64) -> Result<Self, ApiError> {
        let fields: Map<String, Value> =
            serde_json::from_slice(body).map_err(|e| ApiError::Invalid {
                message: format!("The body is not a JSON object: {e}."),
                param: None,
            })?;
        let mut fields = Fields(fields);
        let request = Self {
            model: fields.required("model")?,
            messages: messages(fields.required("messages")?)?,
            params: params(&mut fields, random_seed)?,
            stop: stop(fields.take("stop")?)?,
            max_tokens: max_tokens(&mut fields)?,
            logprobs: logprobs(&mut fields)?,
            stream: fields.take("stream")?.unwrap_or(false),
            include_usage: include_usage(&mut fields)?,
        };
        fields.refuse_the_rest()?;
        Ok(request)
    }
}

/// What of the body has not been read yet. A null is an absent field.
struct Fields(Map<String, Value>);

impl Fields {
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|e| ApiError::invalid(name, format!("Invalid `{name}`: {e}."))),
        }
    }

    fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?
            .ok_or_else(|| ApiError::invalid(name, format!("The field `{name}` is missing.")))
    }

    fn within(
        &mut self,
        name: &str,
        default: f32,
        allowed: impl Fn(f32) -> bool,
        range: &str,
    ) -> Result<f32, ApiError> {
        let value: f32 = self.take(name)?.unwrap_or(default);
        if allowed(value) {
            return Ok(value);
        }
        Err(ApiError::invalid(name, format!("Invalid `{name}`: {value} is not {range}.")))
    }

    fn refuse_the_rest(self) -> Result<(), ApiError> {
        let changes_nothing = |name: &str, value: &Value| match name {
            "n" => value.as_u64() == Some(1),
            "frequency_penalty" | "presence_penalty" => value.as_f64() == Some(0.0),
            "repetition_penalty" => value.as_f64() == Some(1.0),
            "response_format" => value["type"] == "text",
            "modalities" => *value == serde_json::json!(["text"]),
            "tool_choice" | "function_call" => value == "none" || value == "auto",
            "logit_bias" => value.as_object().is_some_and(Map::is_empty),
            "tools" | "functions" => value.as_array().is_some_and(Vec::is_empty),
            name => value.is_null() || IGNORED.contains(&name),
        };
        let refused =
            self.0.iter().find(|(name, value)| !value.is_null() && !changes_nothing(name, value));
        let Some((name, _)) = refused else { return Ok(()) };
        Err(ApiError::invalid(
            name,
            format!("The field `{name}` is not supported with this value."),
        ))
    }
}

fn params(fields: &mut Fields, random_seed: u64) -> Result<SamplingParams, ApiError> {
    let seed: Option<i64> = fields.take("seed")?;
    Ok(SamplingParams {
        temperature: fields.within(
            "temperature",
            1.0,
            |t| (0.0..=2.0).contains(&t),
            "between 0 and 2",
        )?,
        top_p: fields.within("top_p", 1.0, |p| p > 0.0 && p <= 1.0, "above 0 and at most 1")?,
        top_k: fields.take("top_k")?.unwrap_or(0),
        min_p: fields.within("min_p", 0.0, |p| (0.0..=1.0).contains(&p), "between 0 and 1")?,
        seed: seed.map_or(random_seed, i64::cast_unsigned),
    })
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

fn stop(stop: Option<Stop>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(one)) => vec![one],
        Some(Stop::Several(several)) => several,
    };
    let invalid = |what: &str| Err(ApiError::invalid("stop", format!("Invalid `stop`: {what}.")));
    if stops.len() > MAX_STOPS {
        return invalid(&format!("at most {MAX_STOPS} strings"));
    }
    if stops.iter().any(String::is_empty) {
        return invalid("a stop string is empty");
    }
    if stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        return invalid(&format!("a stop string is longer than {MAX_STOP_BYTES} bytes"));
    }
    Ok(stops)
}

fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let older: Option<u32> = fields.take("max_tokens")?;
    let newer: Option<u32> = fields.take("max_completion_tokens")?;
    match (newer, older) {
        (Some(0), _) => Err(ApiError::invalid(
            "max_completion_tokens",
            "`max_completion_tokens` is at least 1.",
        )),
        (None, Some(0)) => Err(ApiError::invalid("max_tokens", "`max_tokens` is at least 1.")),
        (newer, older) => Ok(newer.or(older)),
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.take("logprobs")?.unwrap_or(false);
    let top: Option<u8> = fields.take("top_logprobs")?;
    match top {
        Some(top) if top > MAX_TOP_LOGPROBS => Err(ApiError::invalid(
            "top_logprobs",
            format!("`top_logprobs` is at most {MAX_TOP_LOGPROBS}."),
        )),
        Some(top) if top > 0 && !wanted => {
            Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true."))
        }
        top => Ok(wanted.then(|| top.unwrap_or(0))),
    }
}

fn include_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    struct StreamOptions {
        #[serde(default)]
        include_usage: bool,
    }
    let options: Option<StreamOptions> = fields.take("stream_options")?;
    Ok(options.is_some_and(|options| options.include_usage))
}

fn messages(raw: Vec<Map<String, Value>>) -> Result<Vec<ChatMessage>, ApiError> {
    if raw.is_empty() {
        return Err(ApiError::invalid("messages", "There is no message."));
    }
    raw.into_iter().enumerate().map(|(index, fields)| message(index, Fields(fields))).collect()
}

fn message(index: usize, mut fields: Fields) -> Result<ChatMessage, ApiError> {
    let within = |e: ApiError| match e {
        ApiError::Invalid { message, param } => ApiError::Invalid {
            message,
            param: param.map(|param| format!("messages[{index}].{param}")),
        },
        e => e,
    };
    let role: String = fields.required("role").map_err(within)?;
    let role = match role.as_str() {
        "system" | "user" | "assistant" => role,
        // The newer name of the same part of a chat.
        "developer" => "system".into(),
        other => {
            let message = format!("The role `{other}` is not supported.");
            return Err(within(ApiError::invalid("role", message)));
        }
    };
    let content = content(fields.required("content").map_err(within)?).map_err(within)?;
    for field in ["tool_calls", "function_call", "audio"] {
        if fields.0.get(field).is_some_and(|value| !value.is_null()) {
            let message = format!("The field `{field}` of a message is not supported.");
            return Err(within(ApiError::invalid(field, message)));
        }
    }
    Ok(ChatMessage { role, content })
}

fn content(content: Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(ApiError::invalid("content", "A message's content is text or parts.")),
    };
    let mut text = String::new();
    for part in &parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(part)) => text.push_str(part),
            (kind, _) => {
                let kind = kind.unwrap_or("without a type");
                let message = format!("A content part `{kind}` is not supported, only text is.");
                return Err(ApiError::invalid("content", message));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(extra: Value) -> Result<ChatRequest, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        ChatRequest::parse(body.to_string().as_bytes(), 77)
    }

    /// The field that the error names.
    fn refused(extra: Value) -> String {
        match parse(extra.clone()) {
            Err(ApiError::Invalid { param, .. }) => param.unwrap_or_default(),
            other => panic!("{extra}: {other:?}"),
        }
    }

    #[test]
    fn a_plain_request_has_the_defaults_of_openai() {
        let request = parse(json!({})).expect("a request");
        assert_eq!(request.params, SamplingParams { seed: 77, ..SamplingParams::default() });
        assert_eq!((request.max_tokens, request.logprobs, request.stream), (None, None, false));
    }

    #[test]
    fn every_supported_field_is_read() {
        let request = parse(json!({
            "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": -1, "stop": ["a", "b"],
            "max_tokens": 5, "max_completion_tokens": 6, "logprobs": true, "top_logprobs": 2,
            "stream": true, "stream_options": {"include_usage": true},
        }))
        .expect("a request");
        assert_eq!(request.params.seed, u64::MAX);
        assert_eq!((request.params.temperature, request.params.top_k), (0.0, 3));
        assert_eq!(request.stop, ["a", "b"]);
        assert_eq!((request.max_tokens, request.logprobs), (Some(6), Some(2)));
        assert!(request.stream && request.include_usage);
    }

    #[test]
    fn text_parts_are_joined_and_a_developer_is_the_system() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let messages = json!([{"role": "developer", "content": parts}]);
        let request = parse(json!({"messages": messages})).expect("a request");
        let expected = ChatMessage { role: "system".into(), content: "ab".into() };
        assert_eq!(request.messages, [expected]);
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name_and_the_rest_is_ignored() {
        for field in [
            json!({"n": 2}),
            json!({"tools": [{"type": "function"}]}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"logit_bias": {"5": 1}}),
            json!({"frequency_penalty": 0.5}),
            json!({"reasoning_effort": "high"}),
            json!({"temperature": 2.5}),
            json!({"temperature": "warm"}),
            json!({"top_p": 0}),
            json!({"min_p": -0.1}),
            json!({"top_k": -3}),
            json!({"stop": ["a", "b", "c", "d", "e"]}),
            json!({"stop": [""]}),
            json!({"max_tokens": 0}),
            json!({"max_completion_tokens": 0}),
            json!({"top_logprobs": 5}),
            json!({"model": 5}),
            json!({"messages": []}),
        ] {
            let name = field.as_object().and_then(|f| f.keys().next().cloned()).expect("a field");
            assert_eq!(refused(field), name);
        }
        let harmless = json!({
            "n": 1, "tools": [], "response_format": {"type": "text"}, "logit_bias": {}, "user": "u",
            "frequency_penalty": 0, "presence_penalty": 0.0, "metadata": {"a": "b"}, "audio": null,
        });
        assert!(parse(harmless).is_ok());
    }

    #[test]
    fn a_bad_message_is_named_by_its_place() {
        let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
        for (message, param) in [
            (json!({"role": "tool", "content": "x"}), "messages[1].role"),
            (json!({"role": "user"}), "messages[1].content"),
            (json!({"role": "user", "content": image}), "messages[1].content"),
            (
                json!({"role": "assistant", "content": "", "tool_calls": [1]}),
                "messages[1].tool_calls",
            ),
        ] {
            let first = json!({"role": "user", "content": "hi"});
            assert_eq!(refused(json!({"messages": [first, message]})), param);
        }
    }

    #[test]
    fn a_body_that_is_no_json_object_is_refused() {
        for body in [&b""[..], b"[]", b"{", b"\xff"] {
            assert!(matches!(ChatRequest::parse(body, 0), Err(ApiError::Invalid { .. })));
        }
    }
}
