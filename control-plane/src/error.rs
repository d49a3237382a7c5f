//! What can go wrong in a request, and what the caller is told: the only place that knows status
//! codes. Handlers return [`ApiError`]; [`OnConstraint`] turns a violated constraint into one.

use crate::objects::ObjectError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lorikeet_contract::adapter::AdapterError;
use serde::Serialize;
use serde_json::json;
use std::borrow::Cow;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("this needs an API key (`Authorization: Bearer lk_live_...`) or a session: log in")]
    Unauthenticated,
    #[error("the API key is unknown, revoked, expired or mistyped")]
    InvalidApiKey,
    #[error("the e-mail address or the password is wrong")]
    WrongCredentials,
    #[error("this needs the scope `{needs}`, which the caller does not have")]
    InsufficientScope { needs: &'static str },
    #[error("this is for a session: an API key cannot do it")]
    SessionOnly,
    #[error("this is for operators")]
    OperatorOnly,
    #[error("the session has no tenant")]
    NoTenant,
    #[error("the tenant is suspended: write to support")]
    TenantSuspended,
    #[error("a change must come from the dashboard's own origin")]
    CrossOrigin,
    #[error("the `x-csrf-token` header is missing or not this session's: reload the page")]
    CsrfToken,
    #[error("give your password again: the log-in is more than ten minutes ago")]
    PasswordRequired,
    #[error("there is no such thing here")]
    NotFound,
    #[error("this address does not know that method")]
    MethodNotAllowed,
    /// The request as such cannot be read.
    #[error("{0}")]
    Malformed(String),
    #[error("the request body is larger than this address accepts")]
    BodyTooLarge,
    #[error("the request body did not arrive within {} s: send it at once", within.as_secs())]
    BodyTooSlow { within: Duration },
    /// A field has a value that cannot be accepted. `param` names it.
    #[error("{message}")]
    Invalid { param: &'static str, message: Cow<'static, str> },
    #[error("an account with this e-mail address exists: log in")]
    EmailTaken,
    #[error("the tenant's limit of {limit} {what} is reached")]
    QuotaExceeded { what: &'static str, limit: i64 },
    #[error(transparent)]
    AdapterRefused(#[from] AdapterError),
    #[error("version {version} is not ready: wait until it is, or name another")]
    VersionNotReady { version: i32 },
    #[error("the upload is completed, cancelled or expired: start a new one")]
    UploadClosed,
    #[error(
        "part {part} of {file} has not been reported: send it, report its ETag, complete again"
    )]
    UploadIncomplete { file: String, part: i32 },
    #[error("the object store does not accept the parts of {file}: send them again")]
    PartsRejected { file: String },
    /// The log has the detail.
    #[error("the object store does not answer: try again shortly")]
    ObjectStore(#[from] ObjectError),
    #[error("too many attempts: try again in {retry_after_s} s")]
    TooManyAttempts { retry_after_s: u64 },
    #[error("the server is busy: try again shortly")]
    Busy,
    #[error("the database is away for the moment: try again shortly")]
    Unavailable,
    #[error("the request took too long and was given up")]
    Timeout,
    /// The caller gets no detail; the log does, once.
    #[error("something went wrong on our side; the request id names it")]
    Internal(#[source] anyhow::Error),
}

impl ApiError {
    pub fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self::Internal(error.into())
    }

    pub fn invalid(param: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Invalid { param, message: message.into() }
    }

    pub fn status(&self) -> StatusCode {
        self.status_and_code().0
    }

    fn status_and_code(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::Unauthenticated => (S::UNAUTHORIZED, "unauthenticated"),
            Self::InvalidApiKey => (S::UNAUTHORIZED, "invalid_api_key"),
            Self::WrongCredentials => (S::UNAUTHORIZED, "wrong_credentials"),
            Self::InsufficientScope { .. } => (S::FORBIDDEN, "insufficient_scope"),
            Self::SessionOnly => (S::FORBIDDEN, "session_only"),
            Self::OperatorOnly => (S::FORBIDDEN, "operator_only"),
            Self::NoTenant => (S::FORBIDDEN, "no_tenant"),
            Self::TenantSuspended => (S::FORBIDDEN, "tenant_suspended"),
            Self::CrossOrigin => (S::FORBIDDEN, "cross_origin"),
            Self::CsrfToken => (S::FORBIDDEN, "csrf_token"),
            Self::PasswordRequired => (S::FORBIDDEN, "password_required"),
            Self::NotFound => (S::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Malformed(_) => (S::BAD_REQUEST, "malformed"),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTooSlow { .. } => (S::REQUEST_TIMEOUT, "request_timeout"),
            Self::Invalid { .. } => (S::UNPROCESSABLE_ENTITY, "invalid"),
            Self::EmailTaken => (S::CONFLICT, "email_taken"),
            Self::QuotaExceeded { .. } => (S::FORBIDDEN, "quota_exceeded"),
            Self::AdapterRefused(refusal) => (S::UNPROCESSABLE_ENTITY, refusal.code()),
            Self::VersionNotReady { .. } => (S::CONFLICT, "version_not_ready"),
            Self::UploadClosed => (S::CONFLICT, "upload_closed"),
            Self::UploadIncomplete { .. } => (S::CONFLICT, "upload_incomplete"),
            Self::PartsRejected { .. } => (S::CONFLICT, "parts_rejected"),
            Self::ObjectStore(_) => (S::SERVICE_UNAVAILABLE, "object_store_unavailable"),
            Self::TooManyAttempts { .. } => (S::TOO_MANY_REQUESTS, "too_many_attempts"),
            Self::Busy => (S::SERVICE_UNAVAILABLE, "busy"),
            Self::Unavailable => (S::SERVICE_UNAVAILABLE, "unavailable"),
            Self::Timeout => (S::SERVICE_UNAVAILABLE, "timeout"),
            Self::Internal(_) => (S::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::TooManyAttempts { retry_after_s } => Some(*retry_after_s),
            Self::Busy | Self::Unavailable | Self::ObjectStore(_) | Self::Timeout => Some(1),
            _ => None,
        }
    }
}

/// An error as the caller sees it. Travels in the response's extensions: the pages' layer shows it as a
/// page, and [`with_body`] writes it for programs.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorBody {
    #[serde(skip)]
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub param: Option<&'static str>,
}

/// Without a body: it names the request, whose id is known further out.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let message = self.to_string();
        if let Self::Internal(error) = &self {
            tracing::error!(error = format!("{error:#}"), "request failed");
        }
        if let Self::ObjectStore(error) = &self {
            tracing::error!(%error, "request failed");
        }
        let param = match self {
            Self::Invalid { param, .. } => Some(param),
            _ => None,
        };
        let body = ErrorBody { status, code, message, param };
        let mut response = status.into_response();
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response.extensions_mut().insert(body);
        response
    }
}

/// The response of a request that failed gets its body; any other is left as it is.
pub(crate) fn with_body(mut response: Response, request_id: &str) -> Response {
    let Some(error) = response.extensions_mut().remove::<ErrorBody>() else { return response };
    let mut body = json!({ "error": error });
    body["error"]["request_id"] = request_id.into();
    let (parts, _) = response.into_parts();
    (parts, Json(body)).into_response()
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|e| e.code());
        let told = match (&error, code.as_deref()) {
            (sqlx::Error::RowNotFound, _) => return Self::NotFound,
            // character_not_in_repertoire, untranslatable_character
            (_, Some("22021" | "22P05")) => {
                return Self::Malformed("a text holds a NUL, which cannot be stored".to_owned());
            }
            // lock_not_available, query_canceled (the statement's time limit), deadlock_detected
            (sqlx::Error::PoolTimedOut, _) | (_, Some("55P03" | "57014" | "40P01")) => Self::Busy,
            // admin_shutdown, crash_shutdown, cannot_connect_now
            (sqlx::Error::Io(_), _) | (_, Some("57P01" | "57P02" | "57P03")) => Self::Unavailable,
            _ => return Self::internal(error),
        };
        tracing::warn!(%error, "the database did not answer");
        told
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self::Internal(error)
    }
}

/// `insert(..).await.on_constraint("adapter_name_key", || ApiError::AdapterNameTaken)?`
pub trait OnConstraint<T> {
    fn on_constraint(
        self,
        constraint: &str,
        error: impl FnOnce() -> ApiError,
    ) -> Result<T, ApiError>;
}

impl<T, E: Into<ApiError>> OnConstraint<T> for Result<T, E>
where
    E: Constraint,
{
    fn on_constraint(
        self,
        constraint: &str,
        error: impl FnOnce() -> ApiError,
    ) -> Result<T, ApiError> {
        self.map_err(|e| if e.constraint() == Some(constraint) { error() } else { e.into() })
    }
}

/// The constraint that an error says was violated. An [`ApiError`] still carries it, so that
/// `on_constraint` can be chained.
pub trait Constraint {
    fn constraint(&self) -> Option<&str>;
}

impl Constraint for sqlx::Error {
    fn constraint(&self) -> Option<&str> {
        self.as_database_error().and_then(|e| e.constraint())
    }
}

impl Constraint for ApiError {
    fn constraint(&self) -> Option<&str> {
        match self {
            Self::Internal(error) => error.downcast_ref::<sqlx::Error>()?.constraint(),
            _ => None,
        }
    }
}
