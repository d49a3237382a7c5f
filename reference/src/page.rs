//! The description as a page: no script, a style sheet of its own address, and so no exception from a
//! content security policy.

use serde_json::{Map, Value};
use std::fmt::Write;

/// Light or dark as the reader's system is.
pub const STYLE: &str = include_str!("page.css");

/// `style` is where [`STYLE`] is served.
pub fn page(document: &Value, style: &str) -> String {
    let info = &document["info"];
    let title = escaped(text(&info["title"]));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"stylesheet\" href=\"{}\">\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n<p>{}</p>\n<p><a href=\"/openapi.json\">openapi.json</a>, \
         version {}</p>\n",
        escaped(style),
        prose(text(&info["description"])),
        escaped(text(&info["version"])),
    );
    for (path, method, operation) in operations(document) {
        write_operation(&mut html, path, method, operation);
    }
    html.push_str("<h2>Bodies</h2>\n");
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let heading = escaped(name);
        let _ = writeln!(html, "<section id=\"{heading}\">\n<h3>{heading}</h3>");
        write_fields(&mut html, schema);
        html.push_str("</section>\n");
    }
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = entries(&document["paths"]);
    paths.flat_map(|(path, methods)| {
        entries(methods).map(move |(method, operation)| (path, method, operation))
    })
}

fn write_operation(html: &mut String, path: &str, method: &str, operation: &Value) {
    let _ = writeln!(
        html,
        "<section>\n<h2><span>{}</span> {}</h2>\n<p>{}{}</p>",
        escaped(&method.to_uppercase()),
        escaped(path),
        prose(text(&operation["summary"])),
        if operation["security"] == serde_json::json!([]) { " No key is needed." } else { "" },
    );
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if !body.is_null() {
        let _ = writeln!(html, "<p>Body: {}</p>", kind(body));
    }
    html.push_str("<table>\n");
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let _ = writeln!(
            html,
            "<tr><td><code>{}</code></td><td>in the {}</td><td>{}</td></tr>",
            escaped(text(&parameter["name"])),
            escaped(text(&parameter["in"])),
            prose(text(&parameter["description"])),
        );
    }
    for (status, response) in entries(&operation["responses"]) {
        let kinds: Vec<String> =
            entries(&response["content"]).map(|(_, content)| kind(&content["schema"])).collect();
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(status),
            kinds.join(" or "),
            prose(text(&response["description"])),
        );
    }
    html.push_str("</table>\n</section>\n");
}

fn write_fields(html: &mut String, schema: &Value) {
    let required = schema["required"].as_array();
    html.push_str("<table>\n");
    let parts = schema["allOf"].as_array().into_iter().flatten();
    for part in parts {
        let _ = writeln!(html, "<tr><td></td><td>{}</td><td></td></tr>", kind(part));
    }
    for (name, field) in entries(&schema["properties"]) {
        let needed = required.is_some_and(|names| names.iter().any(|n| n == name));
        let _ = writeln!(
            html,
            "<tr><td><code>{}</code>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(name),
            if needed { " *" } else { "" },
            kind(field),
            prose(text(&field["description"])),
        );
    }
    html.push_str("</table>\n");
}

/// A schema in a few words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        let name = escaped(name);
        return format!("<a href=\"#{name}\">{name}</a>");
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> = values.iter().map(|v| escaped(&v.to_string())).collect();
        return values.join(", ");
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(kinds) = schema[choice].as_array() {
            return kinds.iter().map(kind).collect::<Vec<_>>().join(" or ");
        }
    }
    let of_items = match &schema["items"] {
        Value::Null => String::new(),
        items => format!(" of {}", kind(items)),
    };
    let name = match &schema["type"] {
        Value::Array(types) => types.iter().map(text).collect::<Vec<_>>().join(" or "),
        other => text(other).to_owned(),
    };
    escaped(&name) + &of_items
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Escaped, with what stands in backticks as code.
fn prose(text: &str) -> String {
    let mut html = String::new();
    for (index, part) in escaped(text).split('`').enumerate() {
        let code = index % 2 == 1;
        let _ = if code { write!(html, "<code>{part}</code>") } else { write!(html, "{part}") };
    }
    html
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
