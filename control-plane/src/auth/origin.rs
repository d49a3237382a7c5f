//! Against cross-site request forgery: a change that rides on a cookie must come from our own
//! origin, and carry the session's token.

use super::Session;
use crate::error::ApiError;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;
use url::{Url, form_urlencoded};

const CSRF_HEADER: &str = "x-csrf-token";
const CSRF_FIELD: &str = "csrf";
/// Our forms have a handful of short fields.
const MAX_FORM_BYTES: usize = 64 << 10;

/// Browsers send `Sec-Fetch-Site`, older ones at least `Origin`; a client that sends neither is no
/// browser, and carries nobody's cookies unknowingly.
pub fn require_own_origin(headers: &HeaderMap, public_url: &Url) -> Result<(), ApiError> {
    if let Some(site) = headers.get("sec-fetch-site") {
        let own = site == "same-origin" || site == "none";
        return if own { Ok(()) } else { Err(ApiError::CrossOrigin) };
    }
    match headers.get(header::ORIGIN) {
        Some(origin) if *origin != public_url.origin().ascii_serialization() => {
            Err(ApiError::CrossOrigin)
        }
        _ => Ok(()),
    }
}

/// The token is in the header, or in a plain form's `csrf` field, whose body is put back.
pub async fn require_csrf_token(request: Request, session: &Session) -> Result<Request, ApiError> {
    let is_token = |sent: &[u8]| -> bool { sent.ct_eq(session.csrf_token.as_bytes()).into() };
    if let Some(sent) = request.headers().get(CSRF_HEADER) {
        return if is_token(sent.as_bytes()) { Ok(request) } else { Err(ApiError::CsrfToken) };
    }
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_none_or(|t| t != "application/x-www-form-urlencoded") {
        return Err(ApiError::CsrfToken);
    }
    let (parts, body) = request.into_parts();
    let form = to_bytes(body, MAX_FORM_BYTES).await.map_err(|_| ApiError::BodyTooLarge)?;
    let field = form_urlencoded::parse(&form).find(|(name, _)| name == CSRF_FIELD);
    match field {
        Some((_, sent)) if is_token(sent.as_bytes()) => {}
        _ => return Err(ApiError::CsrfToken),
    }
    Ok(Request::from_parts(parts, form.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &'static str)]) -> bool {
        let headers =
            headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        require_own_origin(&headers, &Url::parse("https://lorikeet.example/x").unwrap()).is_ok()
    }

    #[test]
    fn only_our_own_origin_may_send_changes_from_a_browser() {
        assert!(check(&[]), "not a browser");
        assert!(check(&[("origin", "https://lorikeet.example")]));
        assert!(check(&[("sec-fetch-site", "same-origin")]));
        assert!(!check(&[("origin", "https://evil.example")]));
        assert!(!check(&[("origin", "http://lorikeet.example")]));
        assert!(!check(&[("origin", "null")]));
        assert!(!check(&[("sec-fetch-site", "cross-site")]));
        assert!(!check(&[("sec-fetch-site", "same-site")]), "a sibling subdomain");
        assert!(!check(&[
            ("sec-fetch-site", "cross-site"),
            ("origin", "https://lorikeet.example")
        ]));
    }
}
