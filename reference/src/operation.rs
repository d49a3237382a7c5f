//! One method of one path.

use crate::named;
use serde_json::{Map, Value, json};

#[derive(Debug, Clone)]
pub struct Operation {
    summary: &'static str,
    body: Option<Value>,
    parameters: Vec<Value>,
    responses: Map<String, Value>,
    open: bool,
}

impl Operation {
    /// Needs a key, unless it is said to be [open](Self::open).
    pub fn new(summary: &'static str) -> Self {
        Self { summary, body: None, parameters: Vec::new(), responses: Map::new(), open: false }
    }

    /// What operations have in common, to be filled in [by one](Self::with).
    pub fn failing(failures: &[(u16, &str)]) -> Self {
        Self::new("").fails_with(failures)
    }

    /// The other operation, which also answers as this one does where it says nothing else.
    pub fn with(mut self, operation: Operation) -> Self {
        self.responses.extend(operation.responses);
        Self { responses: self.responses, open: self.open || operation.open, ..operation }
    }

    /// Anyone may call it.
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// The schema of the JSON that it takes.
    pub fn body(mut self, schema: Value) -> Self {
        self.body = Some(schema);
        self
    }

    pub fn query(self, name: &str, what: &str, schema: Value) -> Self {
        self.parameter("query", name, what, schema)
    }

    pub fn header(self, name: &str, what: &str, schema: Value) -> Self {
        self.parameter("header", name, what, schema)
    }

    fn parameter(mut self, place: &str, name: &str, what: &str, schema: Value) -> Self {
        self.parameters.push(json!({
            "name": name, "in": place, "required": false, "description": what, "schema": schema,
        }));
        self
    }

    /// A success with JSON.
    pub fn answers(self, status: u16, what: &str, schema: Value) -> Self {
        self.response(status, what, "application/json", Some(schema))
    }

    /// A success without a body.
    pub fn answers_nothing(self, status: u16, what: &str) -> Self {
        self.response(status, what, "", None)
    }

    /// A success that may also come as server-sent events.
    pub fn streams(mut self, status: u16) -> Self {
        let event = json!({ "schema": { "type": "string", "description": "Server-sent events" } });
        self.responses[&status.to_string()]["content"]["text/event-stream"] = event;
        self
    }

    /// A success that is not JSON.
    pub fn answers_with(self, status: u16, what: &str, media_type: &str) -> Self {
        self.response(status, what, media_type, Some(json!({ "type": "string" })))
    }

    /// `codes` names what the error's `code` may be.
    pub fn fails(self, status: u16, codes: &str) -> Self {
        self.response(status, codes, "application/json", Some(named("Error")))
    }

    pub fn fails_with(self, failures: &[(u16, &str)]) -> Self {
        failures.iter().fold(self, |operation, (status, codes)| operation.fails(*status, codes))
    }

    fn response(
        mut self,
        status: u16,
        what: &str,
        media_type: &str,
        schema: Option<Value>,
    ) -> Self {
        let id = json!({ "description": "The request's id", "schema": { "type": "string" } });
        let mut response = json!({ "description": what, "headers": { "x-request-id": id } });
        if matches!(status, 429 | 503) {
            let after = json!({ "description": "In seconds", "schema": { "type": "integer" } });
            response["headers"]["retry-after"] = after;
        }
        if let Some(schema) = schema {
            response["content"] = json!({ media_type: { "schema": schema } });
        }
        self.responses.insert(status.to_string(), response);
        self
    }

    pub(crate) fn describe(&self, method: &str, path: &str) -> Value {
        let in_path = path.split('/').filter_map(|segment| {
            let name = segment.strip_prefix('{')?.strip_suffix('}')?;
            Some(json!({
                "name": name, "in": "path", "required": true, "schema": { "type": "string" },
            }))
        });
        let mut operation = json!({
            "operationId": format!("{method}{}", path.replace(['/', '{', '}'], "_")),
            "summary": self.summary,
            "parameters": in_path.chain(self.parameters.iter().cloned()).collect::<Vec<_>>(),
            "responses": self.responses,
            "security": if self.open { json!([]) } else { json!([{ "key": [] }]) },
        });
        if let Some(schema) = &self.body {
            operation["requestBody"] = json!({
                "required": true,
                "content": { "application/json": { "schema": schema } },
            });
        }
        operation
    }
}
