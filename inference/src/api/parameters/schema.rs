//! The shared parameters in the API's description.

use super::bias::{MAX_BIAS, MAX_BIASES};
use super::stop::{MAX_STOP_BYTES, MAX_STOPS};
use super::{
    FREQUENCY_PENALTY, Integer, MIN_P, MIN_TOKENS, N, PRESENCE_PENALTY, REPETITION_PENALTY, Real,
    TEMPERATURE, TOP_P,
};
use serde_json::{Map, Value, json};

const REALS: [Real; 6] =
    [TEMPERATURE, TOP_P, MIN_P, PRESENCE_PENALTY, FREQUENCY_PENALTY, REPETITION_PENALTY];

/// An object with the shared parameters and an endpoint's own.
pub fn request(required: &[&str], integers: &[Integer], own: Value) -> Value {
    let mut properties = shared();
    properties.extend([N, MIN_TOKENS].iter().chain(integers).map(named_integer));
    if let Value::Object(own) = own {
        properties.extend(own);
    }
    json!({
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": false,
    })
}

fn named_integer(integer: &Integer) -> (String, Value) {
    (integer.name.to_owned(), integer.schema())
}

/// A text, if it is there.
pub fn text(what: &str) -> Value {
    json!({ "type": ["string", "null"], "description": what })
}

fn shared() -> Map<String, Value> {
    let stop = json!({ "type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES / 4 });
    let fields = json!({
        "model": { "type": "string", "description": "The base model, an adapter, or one version of it." },
        "top_k": {
            "type": ["integer", "null"], "minimum": -1, "maximum": u32::MAX,
            "description": "Only so many of the likeliest tokens are drawn; 0 or -1: all.",
        },
        "seed": {
            "type": ["integer", "null"], "minimum": i64::MIN, "maximum": i64::MAX,
            "description": "The same seed gives the same tokens. Each choice has one of its own.",
        },
        "stop": {
            "anyOf": [
                stop,
                { "type": "array", "items": stop, "maxItems": MAX_STOPS },
                { "type": "null" },
            ],
            "description": "Texts that end the answer and are not part of it.",
        },
        "logit_bias": {
            "type": ["object", "null"],
            "propertyNames": { "pattern": "^(0|[1-9][0-9]{0,5})$" },
            "additionalProperties": { "type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS },
            "maxProperties": MAX_BIASES,
            "description": "Added to the logits of tokens, by their ids.",
        },
        "ignore_eos": {
            "type": ["boolean", "null"],
            "description": "The model's own end tokens do not end the answer.",
        },
        "stream": {
            "type": ["boolean", "null"],
            "description": "Answer with server-sent events, as the text is made.",
        },
        "stream_options": {
            "type": ["object", "null"],
            "properties": { "include_usage": {
                "type": "boolean", "description": "The last event carries the token counts.",
            }},
        },
        "user": text("Yours; ignored."),
        "safety_identifier": text("Yours; ignored."),
        "prompt_cache_key": text("Yours; ignored."),
        "metadata": {
            "type": ["object", "null"],
            "additionalProperties": { "type": "string" },
            "description": "Yours; used for nothing. A response gives it back.",
        },
        "store": { "type": ["boolean", "null"], "description": "Nothing is stored; ignored." },
        "service_tier": text("Ignored."),
        "prompt_cache_retention": text("Ignored."),
    });
    let mut properties = match fields {
        Value::Object(properties) => properties,
        _ => Map::new(),
    };
    if let Value::Object(grammars) = super::grammar::properties() {
        properties.extend(grammars);
    }
    properties.extend(REALS.iter().map(|real| (real.name.to_owned(), real.schema())));
    properties
}
