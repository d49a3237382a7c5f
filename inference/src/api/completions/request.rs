//! The body of a completion request.

use crate::api::error::ApiError;
use crate::api::parameters::{Fields, Integer, MAX_CHOICES, Parameters};
use serde::Deserialize;

/// OpenAI's default of this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

pub const MAX_TOKENS: Integer = Integer {
    name: "max_tokens",
    least: 0,
    most: u32::MAX,
    what: "Most tokens of an answer; 16 without it. 0 for none: with `echo` and `logprobs` that scores \
           the prompt.",
};
pub const LOGPROBS: Integer = Integer {
    name: "logprobs",
    least: 0,
    most: 20,
    what: "Log probabilities of the answer's tokens, and of so many of the likeliest at each place.",
};

#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub parameters: Parameters,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// The answer begins with the prompt.
    pub echo: bool,
    /// Fields that were passed over.
    pub ignored: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a string, a list of strings, a list of token ids or a list of such lists is wanted"
)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

impl CompletionRequest {
    pub fn read(mut fields: Fields, vocab_size: u32, random_seed: u64) -> Result<Self, ApiError> {
        let parameters = Parameters::take(&mut fields, vocab_size, random_seed)?;
        let logprobs = fields.integer(&LOGPROBS)?;
        let echo = fields.flag("echo")?;
        let parameters = Parameters {
            max_tokens: Some(fields.integer(&MAX_TOKENS)?.unwrap_or(DEFAULT_MAX_TOKENS)),
            logprobs: logprobs.map(|top| top as u8),
            prompt_logprobs: echo && logprobs.is_some(),
            ..parameters
        };
        let prompts = prompts(fields.required("prompt")?, vocab_size)?;
        if prompts.len() as u64 * u64::from(parameters.n) > u64::from(MAX_CHOICES) {
            let message =
                format!("Prompts times `n` are at most {MAX_CHOICES}: send several requests.");
            return Err(ApiError::invalid("prompt", message));
        }
        fields.pass("suffix", |suffix| suffix == "");
        Ok(Self { parameters, prompts, echo, ignored: fields.finish()? })
    }
}

fn prompts(prompts: Prompts, vocab_size: u32) -> Result<Vec<Prompt>, ApiError> {
    let prompts: Vec<Prompt> = match prompts {
        Prompts::Text(text) => vec![Prompt::Text(text)],
        Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        Prompts::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    if prompts.is_empty() {
        return Err(ApiError::invalid("prompt", "There is no prompt."));
    }
    let tokens = prompts.iter().filter_map(|prompt| match prompt {
        Prompt::Tokens(tokens) => Some(tokens),
        Prompt::Text(_) => None,
    });
    if let Some(token) = tokens.flatten().find(|token| **token >= vocab_size) {
        let message =
            format!("{token} is no token of this model, whose ids are below {vocab_size}.");
        return Err(ApiError::invalid("prompt", message));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(more: Value) -> Result<CompletionRequest, ApiError> {
        let mut body = json!({ "model": "m", "prompt": "hi" });
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let Value::Object(fields) = body else { panic!("an object") };
        CompletionRequest::read(Fields::new(fields), 100, 77)
    }

    fn refused(more: Value) -> String {
        match read(more.clone()) {
            Err(ApiError::Invalid { param, .. }) => param.unwrap_or_default(),
            other => panic!("{more}: {other:?}"),
        }
    }

    #[test]
    fn prompts_come_as_text_texts_tokens_or_lists_of_tokens() {
        let text = |text: &str| Prompt::Text(text.into());
        for (prompt, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (json!([[1], [2, 3]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
        ] {
            assert_eq!(read(json!({ "prompt": prompt })).expect("a request").prompts, expected);
        }
        for prompt in [json!([]), json!([100]), json!([-1]), json!(["a", 1]), json!(5), json!({})] {
            assert_eq!(refused(json!({ "prompt": prompt })), "prompt");
        }
    }

    #[test]
    fn the_defaults_are_openais_and_what_is_not_supported_is_named() {
        let parameters = read(json!({})).expect("a request").parameters;
        assert_eq!((parameters.max_tokens, parameters.logprobs, parameters.n), (Some(16), None, 1));
        assert_eq!(read(json!({ "logprobs": 0 })).expect("fine").parameters.logprobs, Some(0));
        assert!(read(json!({ "n": 3, "best_of": 3, "suffix": "", "echo": true })).is_ok());
        for more in [
            json!({ "suffix": "the end" }),
            json!({ "best_of": 2 }),
            json!({ "logprobs": 21 }),
            json!({ "logprobs": true }),
            json!({ "messages": [] }),
        ] {
            let name = more.as_object().and_then(|f| f.keys().next().cloned()).expect("a field");
            assert_eq!(refused(more), name);
        }
        let scored =
            read(json!({ "echo": true, "logprobs": 1, "max_tokens": 0 })).expect("a request");
        assert_eq!(scored.parameters.max_tokens, Some(0));
        assert!(scored.parameters.prompt_logprobs);
        assert_eq!(refused(json!({ "prompt": ["a", "b"], "n": 65 })), "prompt");
    }
}
