//! The description of an HTTP API, as OpenAPI 3.1 (<https://spec.openapis.org/oas/v3.1.1>) and as a page
//! to read. A service describes each route where it registers it, so that none goes undescribed, and
//! names every status that a route answers with.

mod operation;
mod page;

pub use operation::Operation;
pub use page::{STYLE, page};

use serde_json::{Map, Value, json};

/// A whole API.
#[derive(Debug, Clone)]
pub struct Reference {
    title: &'static str,
    about: &'static str,
    version: &'static str,
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl Reference {
    /// `about` is Markdown. `error` is the schema of every body that is not a success.
    pub fn new(
        title: &'static str,
        about: &'static str,
        version: &'static str,
        error: Value,
    ) -> Self {
        let mut schemas = Map::new();
        schemas.insert("Error".into(), error);
        Self { title, about, version, paths: Map::new(), schemas }
    }

    /// `path` as axum writes it. `method` in lower case.
    pub fn add(&mut self, method: &str, path: &str, operation: &Operation) {
        let path = path.replace("{*", "{");
        let described = operation.describe(method, &path);
        let methods = self.paths.entry(path).or_insert_with(|| json!({}));
        methods[method] = described;
    }

    /// Names a schema for `#/components/schemas/NAME`.
    pub fn schema(&mut self, name: impl Into<String>, schema: Value) {
        self.schemas.insert(name.into(), schema);
    }

    pub fn document(&self) -> Value {
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": self.title,
                "description": self.about,
                "version": self.version,
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            },
            "paths": self.paths,
            "components": {
                "schemas": self.schemas,
                "securitySchemes": {
                    "key": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An API key, `lk_live_...`",
                    },
                },
            },
        })
    }
}

/// True when the document says that this operation answers with this status. `path` is a pattern of the
/// document.
pub fn declares(document: &Value, method: &str, path: &str, status: u16) -> bool {
    document["paths"][path][method]["responses"].get(status.to_string()).is_some()
}

/// The pattern of the document that a request's path follows, literal ones first. A pattern's last
/// parameter may hold slashes.
pub fn pattern_of<'a>(document: &'a Value, path: &str) -> Option<&'a str> {
    let paths = document["paths"].as_object()?;
    let follows = |pattern: &str| {
        let (mut wanted, mut given) = (pattern.split('/'), path.split('/').peekable());
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(w), Some(_)) if w.starts_with('{') => {
                    if wanted.clone().next().is_none() {
                        return true;
                    }
                }
                (Some(w), Some(g)) if w == g => {}
                _ => return false,
            }
        }
    };
    let (literal, with_parameters): (Vec<_>, Vec<_>) =
        paths.keys().partition(|pattern| !pattern.contains('{'));
    literal.into_iter().chain(with_parameters).map(String::as_str).find(|p| follows(p))
}

/// A reference to a named schema.
pub fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> Value {
        let mut reference = Reference::new("T", "About", "1", json!({ "type": "object" }));
        let get = Operation::new("Look <at> one").answers(200, "It", json!({ "type": "string" }));
        reference.add("get", "/things/{*name}", &get.fails(404, "`not_found`"));
        let post = Operation::new("Make one").body(named("Thing"));
        reference.add("post", "/things", &post.answers(201, "Made", named("Thing")));
        let fields = json!({ "size": { "type": "integer", "description": "In **cm**" } });
        reference.schema("Thing", json!({ "type": "object", "properties": fields }));
        reference.document()
    }

    #[test]
    fn statuses_are_found_by_the_pattern_that_a_path_follows() {
        let document = reference();
        assert_eq!(pattern_of(&document, "/things"), Some("/things"));
        assert_eq!(pattern_of(&document, "/things/a/b"), Some("/things/{name}"));
        assert_eq!(pattern_of(&document, "/other"), None);
        assert!(declares(&document, "get", "/things/{name}", 404));
        assert!(!declares(&document, "get", "/things/{name}", 409));
        assert!(!declares(&document, "put", "/things", 201));
    }

    #[test]
    fn the_page_shows_every_operation_and_field_and_escapes_them() {
        let page = page(&reference(), "/docs.css");
        for text in ["/things/{name}", "Look &lt;at&gt; one", "201", "size", "In **cm**", "404"] {
            assert!(page.contains(text), "{text}");
        }
        assert!(!page.contains("<script") && !page.contains("style="));
    }
}
