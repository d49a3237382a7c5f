//! The static files, inside the program, so that there is nothing to deploy beside it.

use crate::access::{Access, Registry};
use crate::api::extract::Path;
use crate::error::ApiError;
use axum::http::{HeaderName, header};

struct Asset {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $content_type:literal) => {
        Asset {
            name: $name,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../../../web/static/", $name)),
        }
    };
}

const ASSETS: &[Asset] = &[
    asset!("app.css", "text/css; charset=utf-8"),
    asset!("app.js", "text/javascript; charset=utf-8"),
    asset!("upload.js", "text/javascript; charset=utf-8"),
    asset!("lorikeet.svg", "image/svg+xml"),
    asset!("vendor/htmx-2.0.11.min.js", "text/javascript; charset=utf-8"),
];

pub(super) fn routes(registry: Registry) -> Registry {
    registry.get("/static/{*name}", Access::Public, show)
}

type Served = ([(HeaderName, &'static str); 2], &'static [u8]);

async fn show(Path(name): Path<String>) -> Result<Served, ApiError> {
    let asset = ASSETS.iter().find(|asset| asset.name == name).ok_or(ApiError::NotFound)?;
    // Five minutes: a new version of the program brings new files under the same names.
    let headers = [
        (header::CONTENT_TYPE, asset.content_type),
        (header::CACHE_CONTROL, "public, max-age=300"),
    ];
    Ok((headers, asset.bytes))
}
