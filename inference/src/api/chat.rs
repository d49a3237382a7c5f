//! `POST /v1/chat/completions`

use super::answer::{Piece, TokenLogprob};
use super::auth::Caller;
use super::error::ApiError;
use super::generation::{Counts, Ending, Generation, Progress};
use super::request::ChatRequest;
use super::{Api, MAX_BODY_BYTES, stream};
use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lorikeet_contract::RequestId;
use serde_json::{Value, json};
use std::sync::Arc;

pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge { limit: MAX_BODY_BYTES },
        _ => ApiError::Invalid { message: "The body could not be read.".into(), param: None },
    })?;
    let request = ChatRequest::parse(&body, rand::random())?;
    let shape = Shape::new(&api, id, &request);
    let streaming = request.stream;
    let mut generation = Generation::start(api, &caller, request, id).await?;
    // Until the first token an error still has a status of its own.
    let first = match generation.next().await {
        Ok(first) => first,
        Err(error) => return Err(generation.fail(error).await),
    };
    if streaming {
        return Ok(stream::respond(generation, first, shape));
    }
    whole(generation, first, &shape).await.map(IntoResponse::into_response)
}

/// The whole answer in one body. Nothing of it has been delivered before.
async fn whole(
    mut generation: Generation,
    first: Progress,
    shape: &Shape,
) -> Result<axum::Json<Value>, ApiError> {
    let mut text = String::new();
    let mut logprobs = Vec::new();
    let mut progress = first;
    let ending = loop {
        let (piece, ending) = match progress {
            Progress::Piece(piece) => (piece, None),
            Progress::End(piece, ending) => (piece, Some(ending)),
        };
        text += &piece.text;
        logprobs.extend(piece.logprobs);
        if let Some(ending) = ending {
            break ending;
        }
        progress = match generation.next().await {
            Ok(progress) => progress,
            Err(error) => return Err(generation.fail(error).await),
        };
    };
    let counts = generation.complete(ending).await?;
    Ok(axum::Json(shape.whole(&text, logprobs, ending, counts)))
}

/// What all parts of one response repeat, in OpenAI's shape.
pub struct Shape {
    id: String,
    created: i64,
    model: String,
    fingerprint: String,
    logprobs: bool,
    pub include_usage: bool,
}

impl Shape {
    fn new(api: &Api, id: RequestId, request: &ChatRequest) -> Self {
        Self {
            id: format!("chatcmpl-{}", id.as_uuid().simple()),
            created: crate::durable::unix_ms() / 1000,
            model: request.model.clone(),
            fingerprint: format!("fp_{}", api.base.weights_digest.short()),
            logprobs: request.logprobs.is_some(),
            include_usage: request.include_usage,
        }
    }

    fn whole(
        &self,
        text: &str,
        logprobs: Vec<TokenLogprob>,
        ending: Ending,
        counts: Counts,
    ) -> Value {
        let choice = json!({
            "index": 0,
            "message": { "role": "assistant", "content": text, "refusal": null },
            "logprobs": self.logprobs(logprobs),
            "finish_reason": finish_reason(ending),
        });
        self.object("chat.completion", json!([choice]), Some(usage(counts)))
    }

    /// The first chunk: whose turn it is.
    pub fn opening(&self) -> Value {
        self.chunk(json!({ "role": "assistant", "content": "" }), Value::Null, None)
    }

    pub fn piece(&self, piece: Piece) -> Value {
        self.chunk(json!({ "content": piece.text }), self.logprobs(piece.logprobs), None)
    }

    pub fn closing(&self, ending: Ending) -> Value {
        self.chunk(json!({}), Value::Null, Some(ending))
    }

    pub fn counts(&self, counts: Counts) -> Value {
        self.object("chat.completion.chunk", json!([]), Some(usage(counts)))
    }

    fn chunk(&self, delta: Value, logprobs: Value, ending: Option<Ending>) -> Value {
        let choice = json!({
            "index": 0,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": ending.map(finish_reason),
        });
        // OpenAI's chunks say `usage: null` where a last one will carry it.
        let usage = self.include_usage.then_some(Value::Null);
        self.object("chat.completion.chunk", json!([choice]), usage)
    }

    fn object(&self, kind: &str, choices: Value, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }

    fn logprobs(&self, logprobs: Vec<TokenLogprob>) -> Value {
        if self.logprobs { json!({ "content": logprobs, "refusal": null }) } else { Value::Null }
    }
}

fn finish_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Stop => "stop",
        Ending::Length => "length",
    }
}

fn usage(counts: Counts) -> Value {
    json!({
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": u64::from(counts.prompt) + u64::from(counts.completion),
        "prompt_tokens_details": { "cached_tokens": counts.cached },
    })
}
