//! The API's description, `/openapi.json`, and the page that shows it, `/docs`. What a route's access
//! rule and form bring with them is added here; a test holds this list and the routes together.

use crate::access::{Access, Method, Registry, Route};
use axum::http::header;
use lorikeet_reference::{Operation, Reference, STYLE, named, page};
use serde_json::{Value, json};

const ABOUT: &str = "Accounts, keys, adapters and usage. A key with the scope `manage` changes, one \
                     with `read` looks; the dashboard's session may do what its owner may. Models are \
                     asked at the inference API, whose address `/api/v1/service` tells.";

/// What each operation does, takes and answers.
fn operations() -> Vec<(Method, &'static str, Operation)> {
    use Method::{Delete, Get, Post, Put};
    let op = Operation::new;
    let list = |name: &str, of: &str| {
        json!({
            "type": "object",
            "required": [name],
            "properties": { name: { "type": "array", "items": named(of) } },
        })
    };
    let any = || json!({ "type": "object" });
    vec![
        (
            Get,
            "/api/v1/service",
            op("Where everything is").answers(200, "Addresses", named("Service")),
        ),
        (
            Post,
            "/api/v1/signup",
            op("Make an account with a tenant")
                .body(named("SignUp"))
                .answers(201, "Logged in: the session is in a cookie", named("Me"))
                .fails(409, "`email_taken`")
                .fails(429, "`too_many_attempts`"),
        ),
        (
            Post,
            "/api/v1/login",
            op("Log in")
                .body(named("LogIn"))
                .answers(200, "The session is in a cookie", named("Me"))
                .fails(401, "`wrong_credentials`")
                .fails(429, "`too_many_attempts`"),
        ),
        (Post, "/api/v1/logout", op("End the session").answers_nothing(204, "It has ended")),
        (Get, "/api/v1/me", op("Who calls").answers(200, "The caller", named("Me"))),
        (Get, "/api/v1/keys", op("List keys").answers(200, "Newest first", list("keys", "Key"))),
        (
            Post,
            "/api/v1/keys",
            op("Make a key")
                .body(named("NewKey"))
                .answers(201, "The key, shown this once", named("Key"))
                .fails(401, "`unauthenticated`, `invalid_api_key`, `wrong_credentials`")
                .fails(429, "`too_many_attempts`"),
        ),
        (
            Delete,
            "/api/v1/keys/{key_id}",
            op("Revoke a key").answers_nothing(204, "It stops at once"),
        ),
        (
            Get,
            "/api/v1/adapters",
            op("List adapters").answers(200, "By name", list("adapters", "Adapter")),
        ),
        (
            Get,
            "/api/v1/adapters/{name}",
            op("Look at an adapter and its versions").answers(200, "The adapter", named("Adapter")),
        ),
        (
            Delete,
            "/api/v1/adapters/{name}",
            op("Delete an adapter").answers_nothing(204, "All its versions stop answering"),
        ),
        (
            Post,
            "/api/v1/adapters/{name}/disable",
            op("Switch an adapter off: it is refused under all its names, and kept")
                .answers_nothing(204, "New requests are refused with 409 `adapter_disabled`"),
        ),
        (
            Post,
            "/api/v1/adapters/{name}/enable",
            op("Switch an adapter on again").answers_nothing(204, "It answers as before"),
        ),
        (
            Get,
            "/api/v1/adapters/{name}/versions/{version}",
            op("Look at a version").answers(200, "The version", named("Version")),
        ),
        (
            Put,
            "/api/v1/adapters/{name}/aliases/{alias}",
            op("Point an alias at a version: `name@alias` calls it")
                .body(named("NewAlias"))
                .answers(200, "The alias", named("Alias"))
                .fails(409, "`version_not_ready`"),
        ),
        (
            Delete,
            "/api/v1/adapters/{name}/aliases/{alias}",
            op("Take an alias away").answers_nothing(204, "It is gone"),
        ),
        (
            Post,
            "/api/v1/adapters/{name}/versions",
            op("Begin the upload of a version")
                .body(named("NewUpload"))
                .answers(201, "Where each part goes", named("Upload"))
                .fails(403, "`insufficient_scope`, `tenant_suspended`, `quota_exceeded`"),
        ),
        (
            Get,
            "/api/v1/uploads/{upload}",
            op("Look at an upload, with fresh URLs")
                .answers(200, "It", named("Upload"))
                .fails(409, "`upload_closed`"),
        ),
        (
            Delete,
            "/api/v1/uploads/{upload}",
            op("Give an upload up")
                .answers_nothing(204, "It is given up")
                .fails(409, "`upload_closed`"),
        ),
        (
            Put,
            "/api/v1/uploads/{upload}/parts",
            op("Report parts that were sent")
                .body(named("Parts"))
                .answers_nothing(204, "They are noted")
                .fails(409, "`upload_closed`"),
        ),
        (
            Post,
            "/api/v1/uploads/{upload}/complete",
            op("Finish an upload: the version is checked next")
                .answers(202, "The version", named("Version"))
                .fails(409, "`upload_closed`, `upload_incomplete`, `parts_rejected`"),
        ),
        (
            Get,
            "/api/v1/usage",
            in_period(op("Tokens and requests")).answers(200, "By hour or day", any()),
        ),
        (
            Get,
            "/api/v1/limits",
            op("What the tenant is limited to").answers(200, "The limits", named("Limits")),
        ),
        (
            Get,
            "/api/v1/operator/usage",
            in_period(op("All tenants' usage")).answers(200, "By tenant", any()),
        ),
        (Get, "/api/v1/operator/tenants", op("All tenants").answers(200, "Tenants", any())),
        (
            Get,
            "/api/v1/operator/nodes",
            op("All nodes, and whether the books agree").answers(200, "Nodes", any()),
        ),
        (
            Put,
            "/api/v1/operator/tenants/{tenant}/limits",
            op("Replace a tenant's limits; one that is left out ends")
                .body(named("Limits"))
                .answers(200, "The limits", named("Limits")),
        ),
        (
            Put,
            "/api/v1/operator/tenants/{tenant}/adapters/{name}/pin",
            op("Keep an adapter on the nodes' devices").answers_nothing(204, "It is pinned"),
        ),
        (
            Delete,
            "/api/v1/operator/tenants/{tenant}/adapters/{name}/pin",
            op("Let an adapter give way again").answers_nothing(204, "It is not pinned"),
        ),
    ]
}

fn in_period(operation: Operation) -> Operation {
    let moment = "A day (2026-11-24) or a time (RFC 3339)";
    let text =
        || json!({ "type": "string", "anyOf": [{ "format": "date" }, { "format": "date-time" }] });
    operation.query("from", moment, text()).query("to", moment, text()).query(
        "group",
        "What one row covers",
        json!({ "enum": ["hour", "day"] }),
    )
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
            "required": ["code", "message"],
            "properties": {
                "code": { "type": "string", "description": "For programs; stable." },
                "message": { "type": "string" },
                "param": { "type": "string", "description": "The field at fault." },
            },
        }},
    });
    let version = env!("CARGO_PKG_VERSION");
    let mut reference = Reference::new("Lorikeet: control plane", ABOUT, version, error);
    for (name, schema) in super::schemas::schemas() {
        reference.schema(name, schema);
    }
    for (method, path, operation) in operations() {
        let route = routes.iter().find(|r| r.method == method && r.path == path);
        if let Some(route) = route {
            let method = method.as_str().to_lowercase();
            reference.add(&method, path, &surrounded(route, operation));
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
