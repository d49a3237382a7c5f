//! What is done to a JSON schema before and after llguidance has read it.

use serde_json::{Map, Value, json};

/// Parts of a schema that are tried: more than that, and the place stays unsaid.
const MAX_TRIALS: usize = 300;
/// Keywords whose value is a schema, a list of schemas, or schemas by name.
const ONE: [&str; 3] = ["items", "additionalProperties", "additionalItems"];
const LISTS: [&str; 5] = ["anyOf", "oneOf", "allOf", "prefixItems", "items"];
/// Definitions first: what refers to a bad one is refused as well.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
const MAPS: [&str; 4] = ["$defs", "definitions", "properties", "patternProperties"];

/// By how much a number stays away from a bound that it must not reach: llguidance lets it reach a whole
/// one. Of larger numbers this much is nothing.
const APART: f64 = 1e-9;
const LARGE: f64 = 1e6;

/// Moves bounds that are excluded inwards. Whatever is valid afterwards was so before.
pub(super) fn tighten(schema: &mut Value) {
    for (exclusive, bound, apart) in
        [("exclusiveMinimum", "minimum", APART), ("exclusiveMaximum", "maximum", -APART)]
    {
        // Older drafts say with a boolean that the bound itself is excluded.
        let is_flag = schema.get(exclusive) == Some(&Value::Bool(true));
        let Some(value) = schema.get_mut(if is_flag { bound } else { exclusive }) else { continue };
        if let Some(at) = value.as_f64().filter(|at| at.fract() == 0.0 && at.abs() < LARGE) {
            *value = json!(at + apart);
        }
    }
    let Value::Object(fields) = schema else { return };
    for name in MAPS {
        let named = fields.get_mut(name).and_then(Value::as_object_mut);
        named.into_iter().flat_map(Map::values_mut).for_each(tighten);
    }
    for name in ONE {
        fields.get_mut(name).filter(|child| child.is_object()).into_iter().for_each(tighten);
    }
    for name in LISTS {
        let listed = fields.get_mut(name).and_then(Value::as_array_mut);
        listed.into_iter().flatten().for_each(tighten);
    }
}

/// The JSON pointer of the smallest part that is refused for the same reason as the whole; empty for the
/// whole. `refusal` says why a schema is refused, if it is.
pub(super) fn locate(
    schema: &Value,
    reason: &str,
    mut refusal: impl FnMut(&Value) -> Option<String>,
) -> String {
    let (mut pointer, mut part, mut trials) = (String::new(), schema, 0);
    'deeper: loop {
        for (step, child) in children(part) {
            trials += 1;
            if trials > MAX_TRIALS {
                return pointer;
            }
            let refused = refusal(&with_definitions(child, schema));
            if refused.is_some_and(|why| reason.contains(&why)) {
                pointer += &step;
                part = child;
                continue 'deeper;
            }
        }
        return pointer;
    }
}

fn with_definitions(part: &Value, whole: &Value) -> Value {
    let mut part = part.clone();
    if let Value::Object(fields) = &mut part {
        for name in DEFINITIONS {
            if let Some(definitions) = whole.get(name) {
                fields.entry(name).or_insert_with(|| definitions.clone());
            }
        }
    }
    part
}

/// The schemas right inside of one, with what leads to each.
fn children(schema: &Value) -> Vec<(String, &Value)> {
    let mut children = Vec::new();
    for name in MAPS {
        let named = schema.get(name).and_then(Value::as_object).into_iter().flat_map(Map::iter);
        children.extend(named.map(|(key, child)| (format!("/{name}/{}", escaped(key)), child)));
    }
    for name in ONE {
        let child = schema.get(name).filter(|child| child.is_object());
        children.extend(child.map(|child| (format!("/{name}"), child)));
    }
    for name in LISTS {
        let listed = schema.get(name).and_then(Value::as_array).into_iter().flatten();
        children.extend(listed.enumerate().map(|(at, child)| (format!("/{name}/{at}"), child)));
    }
    children.retain(|(_, child)| child.is_object());
    children
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Refuses whatever has `bad` in it, at any depth, or refers to what has.
    fn refusal(schema: &Value) -> Option<String> {
        let bad = |value: &Value| value.to_string().contains("\"bad\":");
        let reached = match schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
            Some(pointer) => schema.pointer(pointer).is_some_and(bad),
            None => {
                let mut own = schema.clone();
                own.as_object_mut()?.remove("$defs");
                bad(&own) || (own.to_string().contains("$ref") && bad(schema))
            }
        };
        reached.then(|| "it is bad".to_owned())
    }

    #[test]
    fn excluded_bounds_move_inwards_wherever_they_are() {
        let mut schema = json!({
            "properties": { "exclusiveMinimum": { "items": { "exclusiveMinimum": 0 } } },
            "anyOf": [{ "maximum": -2, "exclusiveMaximum": true }, { "exclusiveMinimum": 1e15 }],
        });
        tighten(&mut schema);
        let tight = json!({
            "properties": { "exclusiveMinimum": { "items": { "exclusiveMinimum": 1e-9 } } },
            "anyOf": [
                { "maximum": -2.000_000_001, "exclusiveMaximum": true }, { "exclusiveMinimum": 1e15 },
            ],
        });
        assert_eq!(schema, tight);
    }

    #[test]
    fn the_smallest_part_that_is_refused_is_named() {
        let bad = json!({ "bad": 1 });
        for (schema, place) in [
            (bad.clone(), ""),
            (
                json!({ "properties": { "a": {}, "b/c": { "items": bad } } }),
                "/properties/b~1c/items",
            ),
            (json!({ "anyOf": [{}, { "prefixItems": [{}, bad] }] }), "/anyOf/1/prefixItems/1"),
            (
                json!({ "properties": { "a": { "$ref": "#/$defs/x" } }, "$defs": { "x": bad } }),
                "/$defs/x",
            ),
        ] {
            assert_eq!(locate(&schema, "why: it is bad", refusal), place, "{schema}");
        }
    }

    #[test]
    fn a_schema_with_too_many_parts_is_searched_no_further() {
        let properties: Map<String, Value> =
            (0..1000).map(|n| (n.to_string(), json!({}))).collect();
        let mut trials = 0;
        let place = locate(&json!({ "properties": properties }), "why", |_| {
            trials += 1;
            None
        });
        assert_eq!((place.as_str(), trials), ("", MAX_TRIALS));
    }
}
