//! The bodies in the API's description.

use lorikeet_reference::named;
use serde_json::{Value, json};

fn text() -> Value {
    json!({ "type": "string" })
}

fn moment() -> Value {
    json!({ "type": ["string", "null"], "format": "date-time" })
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn array(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    [accounts(), keys(), adapters(), uploads(), limits()].concat()
}

fn accounts() -> Vec<(&'static str, Value)> {
    let email = json!({ "type": "string", "format": "email", "maxLength": 254 });
    let password = json!({ "type": "string", "minLength": 10, "maxLength": 128 });
    let name = json!({ "type": "string", "minLength": 1, "maxLength": 80, "pattern": "^[A-Za-z0-9 ]*[A-Za-z0-9][A-Za-z0-9 ]*$" });
    let log_in = json!({ "email": email, "password": password });
    let mut sign_up = log_in.clone();
    sign_up["tenant_name"] = name;
    let me = json!({
        "user": { "type": ["object", "null"] },
        "tenant": { "type": ["object", "null"] },
        "csrf_token": { "type": "string", "description": "For `x-csrf-token` of changes." },
        "scopes": array(text()),
    });
    let service = json!({
        "api_base_url": text(),
        "dashboard_url": text(),
        "base_model": { "type": ["string", "null"] },
        "version": text(),
    });
    vec![
        ("Service", object(&["api_base_url", "dashboard_url", "base_model", "version"], service)),
        ("SignUp", object(&["email", "password", "tenant_name"], sign_up)),
        ("LogIn", object(&["email", "password"], log_in)),
        ("Me", object(&["user", "tenant"], me)),
    ]
}

fn keys() -> Vec<(&'static str, Value)> {
    let scope = json!({ "enum": ["inference", "read", "manage"] });
    let scopes = json!({ "type": "array", "items": scope, "minItems": 1, "uniqueItems": true });
    let name = json!({ "type": "string", "minLength": 1, "maxLength": 80, "pattern": "^[A-Za-z0-9 _-]*[A-Za-z0-9][A-Za-z0-9 _-]*$" });
    let key = json!({
        "id": text(),
        "key_id": text(),
        "name": text(),
        "scopes": scopes,
        "created_at": moment(),
        "expires_at": moment(),
        "last_used_at": moment(),
        "revoked_at": moment(),
        "key": { "type": "string", "description": "The whole key, when it is made." },
    });
    let new = json!({
        "name": name,
        "scopes": scopes,
        "expires_at": moment(),
        "password": {
            "type": ["string", "null"],
            "description": "Needed from a session whose log-in is more than ten minutes ago.",
        },
    });
    vec![
        ("Key", object(&["id", "key_id", "name", "scopes"], key)),
        ("NewKey", object(&["name", "scopes"], new)),
    ]
}

fn adapters() -> Vec<(&'static str, Value)> {
    let number = json!({ "type": ["integer", "null"] });
    let version = json!({
        "version_id": text(),
        "version": { "type": "integer" },
        "state": { "enum": ["uploading", "verifying", "verified", "ready", "failed", "deleted"] },
        "error": {
            "type": ["object", "null"],
            "properties": { "code": text(), "message": text() },
        },
        "waiting_for": { "type": ["string", "null"] },
        "digest": { "type": ["string", "null"] },
        "rank": number,
        "targets": array(text()),
        "parameters": number,
        "bytes": { "type": "integer" },
        "created_at": moment(),
        "verified_at": moment(),
        "ready_at": moment(),
    });
    let adapter = json!({
        "id": text(),
        "name": text(),
        "created_at": moment(),
        "disabled": {
            "type": "boolean",
            "description": "No version answers until the adapter is enabled again.",
        },
        "serving_version": { "type": ["integer", "null"], "description": "The newest that answers." },
        "latest_version": { "anyOf": [named("Version"), { "type": "null" }] },
        "aliases": array(named("Alias")),
        "versions": array(named("Version")),
    });
    let alias = json!({
        "alias": text(),
        "version": { "type": "integer" },
        "updated_at": moment(),
    });
    let new = json!({ "version": {
        "type": "integer", "minimum": 1, "maximum": i32::MAX,
        "description": "The number of a version that is ready.",
    }});
    vec![
        ("Version", object(&["version_id", "version", "state"], version)),
        ("Adapter", object(&["id", "name", "disabled", "aliases"], adapter)),
        ("Alias", object(&["alias", "version", "updated_at"], alias)),
        ("NewAlias", object(&["version"], new)),
    ]
}

fn uploads() -> Vec<(&'static str, Value)> {
    let count = json!({ "type": "integer", "minimum": 1 });
    let file = object(
        &["name", "bytes"],
        json!({
            "name": { "enum": ["adapter_config.json", "adapter_model.safetensors"] },
            "bytes": count,
        }),
    );
    let new = json!({
        "files": { "type": "array", "items": file, "minItems": 2, "maxItems": 2 },
        "config": { "type": ["object", "null"], "description": "adapter_config.json, to be checked first." },
        "header": {
            "type": ["string", "null"],
            "description": "Base64 of the safetensors header: its 8-byte length and what follows.",
        },
    });
    let upload = json!({
        "upload_id": text(),
        "version_id": text(),
        "adapter": text(),
        "version": { "type": "integer" },
        "state": { "enum": ["open", "completed", "aborted"] },
        "part_bytes": { "type": "integer" },
        "expires_at": moment(),
        "files": array(json!({ "type": "object" })),
    });
    let part = object(
        &["file", "number", "etag", "bytes"],
        json!({
            "file": text(),
            "number": { "type": "integer", "minimum": 1, "maximum": 10_000 },
            "etag": text(),
            "bytes": count,
        }),
    );
    vec![
        ("NewUpload", object(&["files"], new)),
        ("Upload", object(&["upload_id", "version_id", "state", "files"], upload)),
        ("Parts", object(&["parts"], json!({ "parts": array(part) }))),
    ]
}

fn limits() -> Vec<(&'static str, Value)> {
    let from = |least: i64, most: i64| json!({ "type": ["integer", "null"], "minimum": least, "maximum": most });
    let limits = json!({
        "max_concurrency": from(0, 1_000_000),
        "requests_per_minute": from(0, 1_000_000_000),
        "tokens_per_minute": from(0, 1_000_000_000_000),
        "weight": from(1, 10_000),
        "adapter_host_bytes": from(0, i64::MAX),
        "adapter_device_bytes": from(0, i64::MAX),
    });
    vec![("Limits", object(&[], limits))]
}
