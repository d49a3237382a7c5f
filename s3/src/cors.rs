//! What lets the dashboard's pages send parts straight to another origin: s3s routes no OPTIONS,
//! and s3s-fs knows no CORS configuration of buckets.

use crate::Error;
use axum::http::header::{ETAG, HeaderValue};
use axum::http::{Method, Uri};
use std::time::Duration;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Browsers repeat a preflight after this long.
const MAX_AGE: Duration = Duration::from_secs(600);

pub fn layer(origins: &[String]) -> Result<CorsLayer, Error> {
    let origins = origins.iter().map(|o| origin(o)).collect::<Result<Vec<_>, _>>()?;
    Ok(CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::HEAD, Method::PUT])
        .allow_headers(AllowHeaders::mirror_request())
        // The client reports each part's ETag to the control plane.
        .expose_headers([ETAG])
        .max_age(MAX_AGE))
}

fn origin(text: &str) -> Result<HeaderValue, Error> {
    let refused = || Error::Origin(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| refused())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(refused());
    };
    if text != format!("{scheme}://{authority}") {
        return Err(refused());
    }
    HeaderValue::from_str(text).map_err(|_| refused())
}
