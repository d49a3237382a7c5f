//! `POST /v1/responses`, without memory: nothing is stored, and every request brings its whole input.

mod items;
mod request;
mod schema;
mod shape;

use super::Api;
use super::auth::Caller;
use super::body::JsonObject;
use super::chat::prompt;
use super::deadline::Deadline;
use super::error::ApiError;
use super::generation::{Generation, Work};
use super::models::resolve;
use super::parameters::report_ignored;
use super::shape::respond;
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use lorikeet_contract::RequestId;
use request::ResponseRequest;
use shape::ResponseShape;
use std::sync::Arc;

pub use schema::{add_schemas, operation};

pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    deadline: Deadline,
    JsonObject(fields): JsonObject,
) -> Result<Response, ApiError> {
    let request = ResponseRequest::read(fields, api.base.vocab_size, rand::random())?;
    let ResponseRequest { mut parameters, messages, repeated, ignored } = request;
    let model = resolve(&api.base, &caller, &parameters.model)?;
    let tools = repeated.tools.prepare(&api, &mut parameters)?;
    let prompt = prompt(&api, messages, repeated.tools.told()).await?;
    let shape = ResponseShape::new(id, &model, &parameters, repeated);
    let streaming = parameters.stream;
    let work = Work { model, prompts: vec![prompt], parameters, tools };
    let generation = Generation::start(api, &caller, work, id, deadline).await?;
    Ok(report_ignored(respond(generation, shape, streaming).await?, &ignored))
}
