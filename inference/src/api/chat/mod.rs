//! `POST /v1/chat/completions`

mod request;
pub mod schema;
mod shape;

use super::auth::Caller;
use super::body::JsonObject;
use super::error::ApiError;
use super::generation::{Generation, Work};
use super::models::resolve;
use super::parameters::report_ignored;
use super::{Api, shape::respond};
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use lorikeet_compute::model::ChatMessage;
use lorikeet_contract::RequestId;
use request::ChatRequest;
use shape::ChatShape;
use std::sync::Arc;

pub use schema::{add_schemas, operation};
pub use shape::finish_reason;

pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    JsonObject(fields): JsonObject,
) -> Result<Response, ApiError> {
    let request = ChatRequest::read(fields, api.base.vocab_size, rand::random())?;
    let ChatRequest { parameters, messages, ignored } = request;
    let model = resolve(&api.base, &caller, &parameters.model)?;
    let prompt = prompt(&api, messages).await?;
    let shape = ChatShape::new(id, &model, &parameters);
    let streaming = parameters.stream;
    let work = Work { model, prompts: vec![prompt], parameters };
    let generation = Generation::start(api, &caller, work, id).await?;
    Ok(report_ignored(respond(generation, shape, streaming).await?, &ignored))
}

/// Templates and tokenizes on a thread where a long text holds nobody up.
pub async fn prompt(api: &Arc<Api>, messages: Vec<ChatMessage>) -> Result<Vec<u32>, ApiError> {
    let on = api.clone();
    let prompt = move || on.chat_template.prompt(&on.tokenizer, &messages);
    Ok(api.tokenizing.run(prompt).await??)
}
