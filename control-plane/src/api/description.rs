//! The API's description, `/openapi.json`, and the page that shows it, `/docs`: what each route says of
//! itself, and what its access rule and form bring with them.

use crate::access::{Access, Method, Registry, Route};
use axum::http::header;
use lorikeet_reference::{Operation, Reference, STYLE, named, page};
use serde_json::{Value, json};

const ABOUT: &str = "Accounts, keys, adapters and usage. A key with the scope `manage` changes, one \
                     with `read` looks; the dashboard's session may do what its owner may. Models are \
                     asked at the inference API, whose address `/api/v1/service` tells.";

/// An answer that holds a list of `of` under `name`.
pub(super) fn list_of(name: &str, of: &str) -> Value {
    json!({
        "type": "object",
        "required": [name],
        "properties": { name: { "type": "array", "items": named(of) } },
    })
}

/// An answer whose fields are not described.
pub(super) fn anything() -> Value {
    json!({ "type": "object" })
}

/// What a route answers on account of its access rule and its form.
fn surrounded(route: &Route, operation: Operation) -> Operation {
    let mut all = Operation::failing(&[
        (500, "`internal`"),
        (503, "`busy`, `unavailable`, `timeout`, `object_store_unavailable`: try again"),
    ]);
    if route.access == Access::Public {
        all = all.open();
    } else {
        all = all.fails(401, "`unauthenticated`, `invalid_api_key`");
        all = all.fails(403, "`insufficient_scope`, `tenant_suspended`, `session_only`, ...");
    }
    if route.path.contains('{') {
        all = all.fails(404, "`not_found`: no such thing, or another tenant's");
    }
    if matches!(route.method, Method::Get) {
        all = all.fails(400, "`malformed`").fails(422, "`invalid`");
    } else {
        all = all.fails_with(&[
            (400, "`malformed`"),
            (403, "`insufficient_scope`, `tenant_suspended`, `cross_origin`, `csrf_token`, ..."),
            (408, "`request_timeout`: the body did not arrive in time"),
            (413, "`body_too_large`"),
            (422, "`invalid`: `param` names the field; or why an adapter is refused"),
        ]);
    }
    all.with(operation)
}

/// The description of the routes that are there.
pub fn reference(routes: &[Route]) -> Reference {
    let error = json!({
        "type": "object",
        "required": ["error"],
        "properties": { "error": {
            "type": "object",
            "required": ["code", "message", "request_id"],
            "properties": {
                "code": { "type": "string", "description": "For programs; stable." },
                "message": { "type": "string" },
                "param": { "type": "string", "description": "The field at fault." },
                "request_id": { "type": "string", "description": "As in `x-request-id`." },
            },
        }},
    });
    let version = env!("CARGO_PKG_VERSION");
    let mut reference = Reference::new("Lorikeet: control plane", ABOUT, version, error);
    for (name, schema) in super::schemas::schemas() {
        reference.schema(name, schema);
    }
    for route in routes {
        if let Some(operation) = &route.operation {
            let method = route.method.as_str().to_lowercase();
            reference.add(&method, route.path, &surrounded(route, operation.clone()));
        }
    }
    reference
}

/// Serves the description of what the registry has so far.
pub(crate) fn routes(registry: Registry) -> Registry {
    let document: Value = reference(registry.routes()).document();
    let (html, json) = (page(&document, "/docs.css"), document.to_string());
    let typed = |kind: &'static str| [(header::CONTENT_TYPE, kind)];
    registry
        .get("/openapi.json", Access::Public, async move || (typed("application/json"), json))
        .get("/docs", Access::Public, async move || (typed("text/html; charset=utf-8"), html))
        .get("/docs.css", Access::Public, async move || (typed("text/css"), STYLE))
}
