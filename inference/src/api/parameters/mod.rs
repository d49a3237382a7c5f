//! What every endpoint that makes text takes: how tokens are drawn, when an answer ends, and how it is
//! delivered.
//!
//! A field that would change the answer and is not supported is refused with a 400 that names it. One
//! that asks for something else that is not done here is ignored, and the response says so in a header.

mod bias;
mod fields;
pub mod grammar;
mod range;
pub mod schema;
mod stop;

pub use fields::Fields;
pub use grammar::WantedGrammar;
pub use range::{Integer, Real};

use super::error::ApiError;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use lorikeet_compute::sampling::{LogitRules, SamplingParams};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Most answers to one request, over all its prompts, as OpenAI has it.
pub const MAX_CHOICES: u32 = 128;

pub const TEMPERATURE: Real = Real {
    name: "temperature",
    default: 1.0,
    least: 0.0,
    above: false,
    most: 2.0,
    what: "How evenly tokens are drawn; 0 always takes the likeliest.",
};
pub const TOP_P: Real = Real {
    name: "top_p",
    default: 1.0,
    least: 0.0,
    above: true,
    most: 1.0,
    what: "Only the likeliest tokens that together have this probability are drawn.",
};
pub const MIN_P: Real = Real {
    name: "min_p",
    default: 0.0,
    least: 0.0,
    above: false,
    most: 1.0,
    what: "Only tokens of at least this share of the likeliest one's probability are drawn.",
};
pub const PRESENCE_PENALTY: Real = Real {
    name: "presence_penalty",
    default: 0.0,
    least: -2.0,
    above: false,
    most: 2.0,
    what: "Subtracted from the logit of each token that is in the answer so far.",
};
pub const FREQUENCY_PENALTY: Real = Real {
    name: "frequency_penalty",
    default: 0.0,
    least: -2.0,
    above: false,
    most: 2.0,
    what: "Subtracted from a token's logit as often as it is in the answer so far.",
};
pub const REPETITION_PENALTY: Real = Real {
    name: "repetition_penalty",
    default: 1.0,
    least: 0.0,
    above: true,
    most: 10.0,
    what: "Divides positive and multiplies negative logits of tokens in prompt and answer.",
};
pub const N: Integer = Integer {
    name: "n",
    least: 1,
    most: MAX_CHOICES,
    what: "Answers to each prompt. They share the prompt, which is counted once.",
};
pub const MIN_TOKENS: Integer = Integer {
    name: "min_tokens",
    least: 0,
    most: u32::MAX,
    what: "The answer does not end before it has so many tokens.",
};

/// One request's parameters, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    pub model: String,
    pub sampling: SamplingParams,
    pub rules: LogitRules,
    /// What each answer follows.
    pub grammar: Option<WantedGrammar>,
    /// Answers to each prompt.
    pub n: u32,
    pub stop: Vec<String>,
    /// None: as much as the context holds.
    pub max_tokens: Option<u32>,
    pub ignore_eos: bool,
    /// Log probabilities, with this many alternatives.
    pub logprobs: Option<u8>,
    /// The prompt's tokens have some, too.
    pub prompt_logprobs: bool,
    pub stream: bool,
    /// The end of the stream carries the token counts.
    pub include_usage: bool,
    /// The client's own; some endpoints give it back.
    pub metadata: Map<String, Value>,
}

impl Parameters {
    /// Reads the fields that all endpoints share. `max_tokens` and `logprobs` have other names and
    /// forms at each, and are the endpoint's to set. `random_seed` is used when the request has none.
    pub fn take(fields: &mut Fields, vocab_size: u32, random_seed: u64) -> Result<Self, ApiError> {
        // Read for their form: they are the client's own bookkeeping.
        fields.take::<String>("user")?;
        fields.take::<String>("safety_identifier")?;
        fields.take::<String>("prompt_cache_key")?;
        for field in ["store", "service_tier", "prompt_cache_retention"] {
            fields.ignore(field);
        }
        let seed: Option<i64> = fields.take("seed")?;
        let n = fields.integer(&N)?.unwrap_or(1);
        // The best of as many as are asked for are all of them.
        fields.pass("best_of", |value| value.as_u64() == Some(n.into()));
        Ok(Self {
            model: fields.required("model")?,
            sampling: SamplingParams {
                temperature: fields.real(&TEMPERATURE)?,
                top_p: fields.real(&TOP_P)?,
                top_k: top_k(fields)?,
                min_p: fields.real(&MIN_P)?,
                seed: seed.map_or(random_seed, i64::cast_unsigned),
            },
            rules: LogitRules {
                presence_penalty: fields.real(&PRESENCE_PENALTY)?,
                frequency_penalty: fields.real(&FREQUENCY_PENALTY)?,
                repetition_penalty: fields.real(&REPETITION_PENALTY)?,
                bias: bias::take(fields, vocab_size)?,
                min_tokens: fields.integer(&MIN_TOKENS)?.unwrap_or(0),
            },
            grammar: grammar::take(fields)?,
            n,
            stop: stop::take(fields)?,
            max_tokens: None,
            ignore_eos: fields.flag("ignore_eos")?,
            logprobs: None,
            prompt_logprobs: false,
            stream: fields.flag("stream")?,
            include_usage: include_usage(fields)?,
            metadata: fields.take("metadata")?.unwrap_or_default(),
        })
    }

    /// A choice's own seed, so that equal requests give equal choices and one request's differ. The
    /// first choice is that of a request for one.
    pub fn of_choice(&self, choice: u32) -> SamplingParams {
        // Odd, so that choices never share a seed (2^64 divided by the golden ratio).
        let apart = u64::from(choice).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        SamplingParams { seed: self.sampling.seed.wrapping_add(apart), ..self.sampling.clone() }
    }
}

/// Both -1 and 0 are used for "all".
fn top_k(fields: &mut Fields) -> Result<u32, ApiError> {
    let top_k: i64 = fields.take("top_k")?.unwrap_or(0);
    u32::try_from(top_k.max(0)).ok().filter(|_| top_k >= -1).ok_or_else(|| {
        ApiError::invalid("top_k", format!("Invalid `top_k`: {top_k} is not a number of tokens."))
    })
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

/// Names the request's fields that were passed over.
pub const IGNORED: HeaderName = HeaderName::from_static("x-lorikeet-ignored-fields");

/// Says in the response which fields of the request were ignored.
pub fn report_ignored(mut response: Response, ignored: &[&'static str]) -> Response {
    if let Ok(names) = HeaderValue::try_from(ignored.join(", "))
        && !ignored.is_empty()
    {
        response.headers_mut().insert(IGNORED, names);
    }
    response
}

#[cfg(test)]
mod tests;
