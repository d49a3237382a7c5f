//! `POST /v1/chat/completions`

mod request;
pub mod schema;
mod shape;

use super::auth::Caller;
use super::body::JsonObject;
use super::deadline::Deadline;
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
use serde_json::Value;
use shape::ChatShape;
use std::sync::Arc;

pub use schema::{add_schemas, operation};

pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    deadline: Deadline,
    JsonObject(fields): JsonObject,
) -> Result<Response, ApiError> {
    let request = ChatRequest::read(fields, api.base.vocab_size, rand::random())?;
    let ChatRequest { mut parameters, messages, tools, ignored } = request;
    let model = resolve(&api.base, &caller, &parameters.model)?;
    let tool_use = tools.prepare(&api, &mut parameters)?;
    let prompt = prompt(&api, messages, tools.told()).await?;
    let shape = ChatShape::new(id, &model, &parameters);
    let streaming = parameters.stream;
    let work = Work { model, prompts: vec![prompt], parameters, tools: tool_use };
    let generation = Generation::start(api, &caller, work, id, deadline).await?;
    Ok(report_ignored(respond(generation, shape, streaming).await?, &ignored))
}

/// Templates and tokenizes on a thread where a long text holds nobody up.
pub async fn prompt(
    api: &Arc<Api>,
    messages: Vec<ChatMessage>,
    tools: Vec<Value>,
) -> Result<Vec<u32>, ApiError> {
    let on = api.clone();
    let prompt = move || on.chat_template.prompt(&on.tokenizer, &messages, &tools);
    Ok(api.tokenizing.run(prompt).await??)
}
