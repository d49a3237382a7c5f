//! Every way in which a request fails, and the one place where it becomes a response.

use super::deadline::Deadline;
use crate::engine::{RequestError, SubmitError};
use crate::guidance::GuidanceError;
use crate::limits::Exceeded;
use crate::telemetry::{ErrorCode, Outcome};
use crate::usage::LogError;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lorikeet_compute::model::{PromptError, TemplateError};
use lorikeet_contract::RequestId;
use lorikeet_contract::key::ParseKeyError;
use serde_json::{Value, json};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

/// Offered to clients that were turned away for load, in seconds.
const RETRY_AFTER: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("You didn't provide an API key. Send it as `Authorization: Bearer lk_live_...`.")]
    NoKey,
    #[error("Incorrect API key provided: {0}.")]
    MalformedKey(#[from] ParseKeyError),
    /// Unknown, revoked or with another secret: not told apart.
    #[error("Incorrect API key provided. It may have been revoked: the dashboard lists your keys.")]
    UnknownKey,
    #[error("The API key has expired.")]
    ExpiredKey,
    #[error("The API key lacks the scope `inference`.")]
    Scope,
    #[error("The account is suspended.")]
    Suspended,
    #[error("This node has not heard from the control plane for longer than the account allows.")]
    Stale,
    #[error("There is nothing at this address. The API's paths begin with /v1.")]
    NoRoute,
    #[error("This address does not take that method.")]
    Method,
    #[error("The request body is larger than {limit} bytes.")]
    BodyTooLarge { limit: usize },
    #[error(
        "The request body did not arrive within {} s. Send it at once, or make it smaller.",
        within.as_secs()
    )]
    BodyTooSlow { within: Duration },
    #[error("A request with this Idempotency-Key is still running. Ask again when it has ended.")]
    StillRunning,
    #[error("This Idempotency-Key came with another request before. Use a new key.")]
    KeyReused,
    #[error(
        "The request with this Idempotency-Key has been answered and billed, and there was no room to \
         keep the answer. Use a new key to ask anew."
    )]
    AnswerNotKept,
    #[error("{message}")]
    Invalid { message: String, param: Option<String> },
    #[error(
        "This model's maximum context length is {limit} tokens. However, you requested {} tokens \
         ({prompt} in the prompt, {completion} in the completion). Shorten one of them.",
        u64::from(*prompt) + u64::from(*completion)
    )]
    ContextLength { limit: u32, prompt: u32, completion: u32 },
    #[error("The model '{0}' does not exist or you do not have access to it.")]
    NoModel(String),
    #[error("The adapter '{0}' is being verified and is not ready yet.")]
    NotReady(String),
    #[error("The adapter '{0}' is disabled.")]
    Disabled(String),
    #[error("The adapter '{model}' cannot be served here: {reason}.")]
    Unservable { model: String, reason: String },
    #[error("The node has too many requests. Try again in a moment.")]
    Busy,
    #[error(transparent)]
    Limited(#[from] Exceeded),
    /// Nothing may run that could not be billed.
    #[error("The node cannot take requests at the moment: its usage log is not writable.")]
    NoUsageLog,
    #[error("The node is not serving.")]
    Stopped,
    #[error("The adapter could not be loaded: {0}.")]
    AdapterLoad(String),
    #[error("The request did not begin within {seconds} s: the node has too much to do.")]
    QueueTimeout { seconds: u64 },
    #[error("The request did not end within {0}.")]
    Late(Deadline),
    #[error("Access was revoked while the request ran.")]
    Revoked,
    #[error("The request failed inside the node.")]
    Internal,
}

impl ApiError {
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.into()) }
    }

    /// The same about a part of the body, with the part's place.
    pub fn within(self, place: impl Display) -> Self {
        match self {
            Self::Invalid { message, param: Some(param) } => {
                Self::Invalid { message, param: Some(format!("{place}.{param}")) }
            }
            error => error,
        }
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoKey
            | Self::MalformedKey(_)
            | Self::UnknownKey
            | Self::ExpiredKey
            | Self::Revoked => StatusCode::UNAUTHORIZED,
            Self::Scope | Self::Suspended => StatusCode::FORBIDDEN,
            Self::NoRoute | Self::NoModel(_) => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::StillRunning | Self::AnswerNotKept => StatusCode::CONFLICT,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Invalid { .. } | Self::ContextLength { .. } => StatusCode::BAD_REQUEST,
            Self::NotReady(_) | Self::Disabled(_) | Self::Unservable { .. } => StatusCode::CONFLICT,
            Self::Busy | Self::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Stale
            | Self::NoUsageLog
            | Self::Stopped
            | Self::AdapterLoad(_)
            | Self::QueueTimeout { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoKey | Self::MalformedKey(_) | Self::UnknownKey => "invalid_api_key",
            Self::ExpiredKey => "expired_api_key",
            Self::Revoked => "access_revoked",
            Self::Scope => "insufficient_scope",
            Self::Suspended => "account_suspended",
            Self::Stale => "manifest_stale",
            Self::NoRoute => "not_found",
            Self::Method => "method_not_allowed",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::BodyTooSlow { .. } => "request_timeout",
            Self::StillRunning => "idempotency_key_in_use",
            Self::KeyReused => "idempotency_key_reused",
            Self::AnswerNotKept => "idempotency_answer_not_kept",
            Self::Invalid { .. } => return None,
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::NoModel(_) => "model_not_found",
            Self::NotReady(_) => "adapter_not_ready",
            Self::Disabled(_) => "adapter_disabled",
            Self::Unservable { .. } => "adapter_unservable",
            Self::Busy => "node_busy",
            Self::Limited(Exceeded::Concurrency { .. }) => "concurrency_limit_exceeded",
            Self::Limited(_) => "rate_limit_exceeded",
            Self::NoUsageLog => "usage_log_unavailable",
            Self::Stopped => "node_stopped",
            Self::AdapterLoad(_) => "adapter_load_failed",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::Late(_) => "deadline_exceeded",
            Self::Internal => "internal_error",
        })
    }

    /// What metrics and the access log call it.
    pub fn outcome(&self) -> Outcome {
        self.code().unwrap_or("invalid_request")
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::NoModel(_)
            | Self::NotReady(_)
            | Self::Disabled(_)
            | Self::Unservable { .. }
            | Self::AdapterLoad(_) => Some("model"),
            _ => None,
        }
    }

    fn retry_after_s(&self) -> Option<u64> {
        match self {
            // Its answer may come any moment.
            Self::StillRunning => Some(RETRY_AFTER),
            Self::Limited(exceeded) => {
                Some((exceeded.retry_after().as_nanos().div_ceil(1_000_000_000) as u64).max(1))
            }
            _ => match self.status() {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    Some(RETRY_AFTER)
                }
                _ => None,
            },
        }
    }

    /// OpenAI's shape, also for an error in the middle of a stream.
    pub fn body(&self, request: RequestId) -> Value {
        let kind = match self.status() {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": {
            "message": self.to_string(),
            "type": kind,
            "param": self.param(),
            "code": self.code(),
            "request_id": request,
        }})
    }
}

/// Without a body: [`with_body`] writes it where the request's id is known.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response.extensions_mut().insert(ErrorCode(self.outcome()));
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// The response of a request that failed gets its body; any other is left as it is.
pub fn with_body(mut response: Response, request: RequestId) -> Response {
    let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() else { return response };
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.map(|_| Body::from(error.body(request).to_string()))
}

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full => Self::Busy,
            _ => Self::NoUsageLog,
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull | SubmitError::TenantQueueFull => Self::Busy,
            SubmitError::Stopped => Self::Stopped,
            SubmitError::EmptyPrompt => {
                Self::Invalid { message: "The prompt has no token.".into(), param: None }
            }
        }
    }
}

impl ApiError {
    /// What a request that the engine had taken failed with.
    pub fn of_request(error: RequestError, deadline: Deadline) -> Self {
        match error {
            RequestError::AdapterLoad(reason) => Self::AdapterLoad(reason),
            RequestError::QueueTimeout { seconds } => Self::QueueTimeout { seconds },
            RequestError::Deadline => Self::Late(deadline),
            RequestError::Revoked => Self::Revoked,
            RequestError::Engine(_) => Self::Stopped,
            RequestError::Guidance { error: GuidanceError::Internal, .. } => Self::Internal,
            RequestError::Guidance { parameter, error } => {
                Self::invalid(parameter, format!("Invalid `{parameter}`: {error}."))
            }
            too_large @ RequestError::TooLarge { .. } => {
                Self::Invalid { message: format!("{too_large}."), param: None }
            }
        }
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::Template(TemplateError::Refused(reason)) => Self::invalid(
                "messages",
                format!("The model's chat template refuses them: {reason}"),
            ),
            // What a template says of its failure may quote the messages.
            PromptError::Template(_) => {
                tracing::error!("the model's chat template failed on a request's messages");
                Self::Internal
            }
            PromptError::Tokenizer(_) => {
                tracing::error!("the tokenizer failed on a request's messages");
                Self::Internal
            }
        }
    }
}
