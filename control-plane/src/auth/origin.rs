//! Against cross-site request forgery: a change that rides on a cookie must come from our own
//! origin, and carry the session's token.

use super::Session;
use crate::error::ApiError;
use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;
use url::Url;

pub const CSRF_HEADER: &str = "x-csrf-token";

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

pub fn require_csrf_token(headers: &HeaderMap, session: &Session) -> Result<(), ApiError> {
    let sent = headers.get(CSRF_HEADER).ok_or(ApiError::CsrfToken)?;
    let matches: bool = sent.as_bytes().ct_eq(session.csrf_token.as_bytes()).into();
    if matches { Ok(()) } else { Err(ApiError::CsrfToken) }
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
