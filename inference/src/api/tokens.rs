//! `POST /tokenize` and `POST /detokenize`, in vLLM's shape: how many tokens a prompt has, and which.

use super::Api;
use super::auth::Caller;
use super::body::JsonObject;
use super::chat::prompt;
use super::description::{OF_A_BODY, OF_A_KEY, OF_A_MODEL};
use super::error::ApiError;
use super::messages::CHAT;
use super::models::resolve;
use super::tools;
use axum::extract::State;
use axum::{Extension, Json};
use lorikeet_compute::model::Specials;
use lorikeet_reference::{Operation, Reference, named};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn tokenize_operation() -> Operation {
    let answer = json!({
        "type": "object",
        "required": ["count", "max_model_len", "tokens"],
        "properties": {
            "count": { "type": "integer" },
            "max_model_len": { "type": "integer" },
            "tokens": { "type": "array", "items": { "type": "integer" } },
            "token_strs": { "type": "array", "items": { "type": "string" } },
        },
    });
    described("Turn a prompt or a chat into tokens", "TokenizeRequest", "The tokens", answer)
}

pub fn detokenize_operation() -> Operation {
    let answer = json!({
        "type": "object",
        "required": ["prompt"],
        "properties": { "prompt": { "type": "string" } },
    });
    described("Turn tokens into text", "DetokenizeRequest", "The text", answer)
}

fn described(summary: &'static str, body: &str, what: &str, answer: Value) -> Operation {
    Operation::new(summary)
        .body(named(body))
        .answers(200, what, answer)
        .fails_with(OF_A_KEY)
        .fails_with(OF_A_MODEL)
        .fails_with(OF_A_BODY)
}

pub fn add_schemas(reference: &mut Reference) {
    let shared = json!({
        "model": { "type": "string" },
        "return_token_strs": { "type": ["boolean", "null"] },
        "add_special_tokens": {
            "type": ["boolean", "null"],
            "description": "Whether the model's beginning of a text comes first, where it is not there \
                            already. Without it, in a prompt and not in messages.",
        },
    });
    let with = |name: &str, schema: Value| {
        let mut properties = shared.clone();
        properties[name] = schema;
        json!({
            "type": "object",
            "required": ["model", name],
            "properties": properties,
            "additionalProperties": false,
        })
    };
    let messages = json!({ "type": "array", "minItems": 1, "items": named("Message") });
    let mut chat = with("messages", messages);
    for (name, property) in tools::schema::chat_properties() {
        chat["properties"][name] = property;
    }
    let either = [with("prompt", json!({ "type": "string" })), chat];
    reference.schema("TokenizeRequest", json!({ "anyOf": either }));
    let tokens = json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
    let detokenize = json!({
        "type": "object",
        "required": ["model", "tokens"],
        "properties": {
            "model": { "type": "string" },
            "tokens": { "type": "array", "items": tokens },
        },
        "additionalProperties": false,
    });
    reference.schema("DetokenizeRequest", detokenize);
}

/// A text as `/v1/completions` would read it, or messages as `/v1/chat/completions` would.
pub async fn tokenize(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    JsonObject(mut fields): JsonObject,
) -> Result<Json<Value>, ApiError> {
    resolve(&api.base, &caller, &fields.required::<String>("model")?)?;
    let text: Option<String> = fields.take("prompt")?;
    let chat = fields.take(CHAT.field)?.map(|raw| CHAT.read(raw)).transpose()?;
    let tools = tools::CHAT.take(&mut fields)?;
    let with_texts = fields.flag("return_token_strs")?;
    // The template says what an answer begins with.
    fields.pass("add_generation_prompt", |value| *value == json!(true));
    // It also writes what a chat begins with; a text has that by default, as in a completion.
    let begins = fields.take("add_special_tokens")?.unwrap_or(text.is_some());
    fields.finish()?;
    let tokens = match (text, chat) {
        (Some(text), None) => text_tokens(&api, text).await?,
        (None, Some(messages)) => prompt(&api, messages, tools.told()).await?,
        _ => {
            let message = "Exactly one of `prompt` and `messages` is wanted.";
            return Err(ApiError::invalid("prompt", message));
        }
    };
    let tokens = if begins && !tokens.is_empty() { api.tokenizer.begin(tokens) } else { tokens };
    let mut answer = json!({
        "count": tokens.len(),
        "max_model_len": api.base.context_length,
        "tokens": tokens,
    });
    if with_texts {
        let bytes = tokens.iter().map(|id| api.tokenizer.token_bytes(*id).unwrap_or_default());
        answer["token_strs"] = bytes.map(String::from_utf8_lossy).collect();
    }
    Ok(Json(answer))
}

/// The text of token ids, special ones by their names.
pub async fn detokenize(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    JsonObject(mut fields): JsonObject,
) -> Result<Json<Value>, ApiError> {
    resolve(&api.base, &caller, &fields.required::<String>("model")?)?;
    let tokens: Vec<u32> = fields.required("tokens")?;
    fields.finish()?;
    let mut text = Vec::new();
    for token in tokens {
        let bytes = api.tokenizer.token_bytes(token).ok_or_else(|| {
            ApiError::invalid("tokens", format!("{token} is no token of this model."))
        })?;
        text.extend_from_slice(bytes);
    }
    Ok(Json(json!({ "prompt": String::from_utf8_lossy(&text) })))
}

/// On a thread where a long text holds nobody up.
async fn text_tokens(api: &Arc<Api>, text: String) -> Result<Vec<u32>, ApiError> {
    let on = api.clone();
    let tokens = move || on.tokenizer.encode(&text, Specials::Recognised);
    api.tokenizing.run(tokens).await?.map_err(|_| {
        tracing::error!("the tokenizer failed on a text");
        ApiError::Internal
    })
}
