//! What customers call: OpenAI's API, answered by this node alone.
//!
//! ```text
//! observed ── CORS ── /health /ready /openapi.json /docs
//!                └─── auth ── body ── idempotency ── rate limits ── models, tokens
//!                         └── chat, completions, responses ── request ── messages, parameters
//!                                  │      └─ shape: whole, or stream
//!                                  └──── generation ── choice ── answer ── stop
//! ```

mod auth;
mod body;
mod chat;
mod completions;
mod deadline;
mod description;
mod door;
mod error;
mod frame;
mod generation;
mod health;
mod idempotency;
mod messages;
mod models;
mod parameters;
mod rate_limits;
mod read_body;
mod responses;
mod routes;
mod shape;
mod stream;
mod timing;
mod tokenizing;
mod tokens;
mod tools;
mod usage;
mod warm_up;

pub use idempotency::Idempotency;
pub use read_body::Bodies;

use crate::engine::EngineHandle;
use crate::guidance::Guidance;
use crate::limits::Limiter;
use crate::link::Manifest;
use crate::telemetry::{TRACERESPONSE, Telemetry, X_REQUEST_ID, observe};
use crate::usage::UsageLog;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
pub use door::Door;
use error::ApiError;
use lorikeet_compute::model::{ChatTemplate, Tokenizer};
use lorikeet_contract::{BaseModelSpec, RequestId};
use routes::Routes;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

pub use tokenizing::Tokenizing;

/// Largest body of a request; far more text than a context holds.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What handlers share.
pub struct Api {
    pub base: BaseModelSpec,
    pub tokenizer: Arc<Tokenizer>,
    pub tokenizing: Tokenizing,
    pub chat_template: ChatTemplate,
    /// Whether the model is told of tools, and calls of them are read.
    pub calls_tools: bool,
    pub guidance: Arc<Guidance>,
    pub manifest: Arc<Manifest>,
    pub usage: Arc<UsageLog>,
    pub engine: EngineHandle,
    pub limiter: Arc<Limiter>,
    pub idempotency: Idempotency,
    pub bodies: Bodies,
    /// At most so long after its arrival a request that generates is answered, or a 504.
    pub request_within: Duration,
    /// Cancelled when the node has been told to stop: it is not ready any more.
    pub stopping: CancellationToken,
    pub telemetry: Arc<Telemetry>,
    pub started_unix_s: i64,
}

/// The routes, by who may call them, with their description.
struct Table {
    v1: Router<Arc<Api>>,
    tokens: Router<Arc<Api>>,
    open: Router<Arc<Api>>,
    #[cfg(test)]
    reference: lorikeet_reference::Reference,
}

impl Table {
    fn new() -> Self {
        let mut reference = description::reference();
        reference.schema("Usage", description::usage());
        for add_schemas in [
            chat::add_schemas,
            completions::add_schemas,
            responses::add_schemas,
            models::add_schemas,
            tokens::add_schemas,
        ] {
            add_schemas(&mut reference);
        }
        let v1 = Routes::under("/v1", &mut reference)
            .post("/chat/completions", chat::create, chat::operation())
            .post("/completions", completions::create, completions::operation())
            .post("/responses", responses::create, responses::operation())
            .get("/models", models::list, models::list_operation())
            .get("/models/{*model}", models::get, models::operation())
            .post("/adapters/{model}/warm-up", warm_up::warm_up, warm_up::operation())
            .finish();
        // Where vLLM has them.
        let tokens = Routes::under("", &mut reference)
            .post("/tokenize", tokens::tokenize, tokens::tokenize_operation())
            .post("/detokenize", tokens::detokenize, tokens::detokenize_operation())
            .finish();
        let open = Routes::under("", &mut reference)
            .get("/health", health::health, health::health_operation())
            .get("/ready", health::ready, health::ready_operation())
            .finish();
        let open = open.merge(description::routes(&mut reference));
        Self {
            v1,
            tokens,
            open,
            #[cfg(test)]
            reference,
        }
    }
}

/// What `/openapi.json` says.
#[cfg(test)]
pub fn document() -> serde_json::Value {
    Table::new().reference.document()
}

/// The node's routes. Pages of `origins` may call them from a browser.
pub fn router(api: Arc<Api>, origins: Option<AllowOrigin>) -> Router {
    let telemetry = api.telemetry.clone();
    let Table { v1, tokens, open, .. } = Table::new();
    let v1 = v1
        .fallback(async || ApiError::NoRoute)
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(from_fn_with_state(api.clone(), rate_limits::admit))
        .layer(from_fn_with_state(api.clone(), idempotency::once))
        .layer(from_fn_with_state(api.clone(), read_body::read_whole))
        .layer(from_fn_with_state(api.clone(), rate_limits::tell))
        .layer(from_fn_with_state(api.clone(), auth::require_key));
    let tokens = tokens
        .route_layer(from_fn_with_state(api.clone(), read_body::read_whole))
        .route_layer(from_fn_with_state(api.clone(), auth::require_key));
    let router = Router::new()
        .nest("/v1", v1)
        .merge(tokens)
        .merge(open)
        .fallback(async || ApiError::NoRoute)
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
        .layer(CatchPanicLayer::custom(panicked));
    let router = match origins {
        Some(origins) => router.layer(cors(origins)),
        None => router,
    };
    router.layer(from_fn(write_errors)).layer(from_fn_with_state(telemetry, observe))
}

/// Keys travel in a header and never in cookies, so no credentials are allowed.
fn cors(origins: AllowOrigin) -> CorsLayer {
    let own = [
        X_REQUEST_ID,
        TRACERESPONSE,
        header::RETRY_AFTER,
        idempotency::REPLAYED,
        parameters::IGNORED,
        timing::X_QUEUE,
        timing::X_ADAPTER_LOAD,
    ];
    let exposed: Vec<HeaderName> = own.into_iter().chain(rate_limits::header_names()).collect();
    CorsLayer::new()
        .allow_origin(origins)
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
