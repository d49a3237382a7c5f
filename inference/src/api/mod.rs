//! What customers call: OpenAI's API, answered by this node alone.
//!
//! ```text
//! observed ── CORS ── /health /ready
//!                └─── auth ── rate limits ── models, tokens
//!                         └── chat, completions, responses ── request ── messages, parameters
//!                                  │      └─ shape: whole, or stream
//!                                  └──── generation ── choice ── answer ── stop
//! ```

mod auth;
mod body;
mod chat;
mod completions;
mod error;
mod generation;
mod health;
mod messages;
mod models;
mod parameters;
mod rate_limits;
mod responses;
mod shape;
mod stream;
mod tokens;
mod usage;

use crate::engine::EngineHandle;
use crate::limits::Limiter;
use crate::link::Manifest;
use crate::model::{ChatTemplate, Tokenizer};
use crate::telemetry::{TRACERESPONSE, Telemetry, X_REQUEST_ID, observe};
use crate::usage::UsageLog;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use error::ApiError;
use lorikeet_contract::{BaseModelSpec, RequestId};
use std::any::Any;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, CorsLayer};

/// Largest body of a request; far more text than a context holds.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What handlers share.
pub struct Api {
    pub base: BaseModelSpec,
    pub tokenizer: Tokenizer,
    pub chat_template: ChatTemplate,
    pub manifest: Arc<Manifest>,
    pub usage: Arc<UsageLog>,
    pub engine: EngineHandle,
    pub limiter: Arc<Limiter>,
    /// Cancelled when the node has been told to stop: it is not ready any more.
    pub stopping: CancellationToken,
    pub telemetry: Arc<Telemetry>,
    pub started_unix_s: i64,
}

/// The node's routes. `dashboard_origin` may call them from a browser.
pub fn router(api: Arc<Api>, dashboard_origin: Option<HeaderValue>) -> Router {
    let telemetry = api.telemetry.clone();
    let v1 = Router::new()
        .route("/chat/completions", post(chat::create))
        .route("/completions", post(completions::create))
        .route("/responses", post(responses::create))
        .route("/models", get(models::list))
        .route("/models/{*model}", get(models::get))
        .fallback(async || ApiError::NoRoute)
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(from_fn_with_state(api.clone(), rate_limits::admit))
        .layer(from_fn_with_state(api.clone(), rate_limits::tell))
        .layer(from_fn_with_state(api.clone(), auth::require_key));
    // Where vLLM has them.
    let tokens = Router::new()
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route_layer(from_fn_with_state(api.clone(), auth::require_key));
    let router = Router::new()
        .nest("/v1", v1)
        .merge(tokens)
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .fallback(async || ApiError::NoRoute)
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
        .layer(CatchPanicLayer::custom(panicked));
    let router = match dashboard_origin {
        Some(origin) => router.layer(cors(origin)),
        None => router,
    };
    router.layer(from_fn(write_errors)).layer(from_fn_with_state(telemetry, observe))
}

/// Keys travel in a header and never in cookies, so no credentials are allowed.
fn cors(origin: HeaderValue) -> CorsLayer {
    let exposed = [X_REQUEST_ID, TRACERESPONSE, header::RETRY_AFTER]
        .into_iter()
        .chain(rate_limits::header_names());
    let exposed: Vec<HeaderName> = exposed.collect();
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
}

/// Errors name the request, whose id is known out here.
async fn write_errors(
    Extension(id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    error::with_body(next.run(request).await, id)
}

/// The process's hook logs where the panic was; its message may quote a prompt and goes nowhere.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::Internal.into_response()
}
