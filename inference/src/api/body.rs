//! A request's body, as a JSON object.

use super::MAX_BODY_BYTES;
use super::error::ApiError;
use super::parameters::Fields;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;

pub struct JsonObject(pub Fields);

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge { limit: MAX_BODY_BYTES },
            _ => ApiError::Invalid { message: "The body could not be read.".into(), param: None },
        })?;
        parse(&body)
    }
}

pub fn parse(body: &[u8]) -> Result<JsonObject, ApiError> {
    let fields = serde_json::from_slice(body).map_err(|e| ApiError::Invalid {
        message: format!("The body is not a JSON object: {e}."),
        param: None,
    })?;
    Ok(JsonObject(Fields::new(fields)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_json_object_is_refused() {
        for body in [&b""[..], b"[]", b"{", b"\xff"] {
            assert!(matches!(parse(body), Err(ApiError::Invalid { .. })));
        }
    }
}
