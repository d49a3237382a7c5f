//! `POST /v1/completions`

mod request;
mod schema;
mod shape;

use super::Api;
use super::auth::Caller;
use super::body::JsonObject;
use super::deadline::Deadline;
use super::error::ApiError;
use super::generation::{Generation, Work};
use super::models::resolve;
use super::parameters::report_ignored;
use super::shape::respond;
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use lorikeet_compute::model::{Specials, Tokenizer};
use lorikeet_contract::RequestId;
use request::{CompletionRequest, Prompt};
use shape::{CompletionShape, Echo};
use std::sync::Arc;

pub use schema::{add_schemas, operation};

pub async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    deadline: Deadline,
    JsonObject(fields): JsonObject,
) -> Result<Response, ApiError> {
    let request = CompletionRequest::read(fields, api.base.vocab_size, rand::random())?;
    let CompletionRequest { parameters, prompts, echo, ignored } = request;
    let model = resolve(&api.base, &caller, &parameters.model)?;
    let prompts = tokenized(&api, prompts, echo).await?;
    let scored = parameters.prompt_logprobs;
    let echoes = prompts.iter().map(|prompt| Echo { text: prompt.echo.clone(), scored }).collect();
    let shape = CompletionShape::new(id, &model, &parameters, echoes);
    let streaming = parameters.stream;
    let prompts = prompts.into_iter().map(|prompt| prompt.tokens).collect();
    let work = Work { model, prompts, parameters, tools: None };
    let generation = Generation::start(api, &caller, work, id, deadline).await?;
    Ok(report_ignored(respond(generation, shape, streaming).await?, &ignored))
}

struct Tokenized {
    tokens: Vec<u32>,
    /// What the answer begins with.
    echo: String,
}

/// On a thread where a long text holds nobody up.
async fn tokenized(
    api: &Arc<Api>,
    prompts: Vec<Prompt>,
    echo: bool,
) -> Result<Vec<Tokenized>, ApiError> {
    let on = api.clone();
    let all =
        move || prompts.into_iter().map(|prompt| tokenize(&on.tokenizer, prompt, echo)).collect();
    api.tokenizing.run(all).await?
}

/// Special tokens are recognised in a text, as everywhere else: here the caller writes the whole
/// prompt, but for the token that a text of this model begins with. Token ids say exactly what is meant.
fn tokenize(tokenizer: &Tokenizer, prompt: Prompt, echo: bool) -> Result<Tokenized, ApiError> {
    let prompt = match prompt {
        Prompt::Text(text) => {
            let tokens = tokenizer.encode(&text, Specials::Recognised).map_err(|_| {
                tracing::error!("the tokenizer failed on a request's prompt");
                ApiError::Internal
            })?;
            // An empty text stays one, for which there is no answer.
            let tokens = if tokens.is_empty() { tokens } else { tokenizer.begin(tokens) };
            Tokenized { tokens, echo: if echo { text } else { String::new() } }
        }
        Prompt::Tokens(tokens) => {
            let text = if echo { tokenizer.decode(&tokens) } else { String::new() };
            Tokenized { tokens, echo: text }
        }
    };
    if prompt.tokens.is_empty() {
        return Err(ApiError::invalid("prompt", "A prompt without any token is not answered."));
    }
    Ok(prompt)
}
