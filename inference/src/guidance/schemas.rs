//! Random JSON schemas, for tests of what answers under them.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

const NAMES: [&str; 9] = ["id", "name", "größe", "a \"b\"", "tags", "next", "日本", "x_1", "🦜\\"];

const PATTERNS: [&str; 6] = [
    "^[a-z]{2,5}$",
    "^[A-Z][0-9]{3}$",
    "^(foo|bar)-[0-9]{1,3}$",
    "^(ä|ö|ü|日本|🦜){1,4}$",
    r#"^["\\/\t]{1,3}$"#,
    "^b[0-9]+",
];

const FORMATS: [&str; 3] = ["uuid", "ipv4", "ipv6"];

/// What a schema may have in it that tests count.
pub type Features = BTreeSet<&'static str>;

pub struct Generator {
    random: StdRng,
    definitions: Map<String, Value>,
    features: Features,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            definitions: Map::new(),
            features: Features::new(),
        }
    }

    /// An object's schema, and what is in it.
    pub fn schema(&mut self) -> (Value, Features) {
        let mut schema = self.object(3);
        if !self.definitions.is_empty() {
            schema["$defs"] = std::mem::take(&mut self.definitions).into();
        }
        (schema, std::mem::take(&mut self.features))
    }

    fn any(&mut self, depth: u32) -> Value {
        let kinds = if depth == 0 { 9 } else { 15 };
        match self.random.random_range(0..kinds) {
            0 => json!({ "type": "boolean" }),
            1 => json!({ "type": ["null", "boolean"] }),
            2 => self.integer(),
            3 => self.number(),
            4 | 5 => self.string(),
            6 => {
                self.features.insert("pattern");
                json!({ "type": "string", "pattern": self.one_of(&PATTERNS) })
            }
            7 => {
                self.features.insert("enum");
                let values = ["red", "dark \"blue\"", "\u{1}\n\\", "🦜 日本"];
                json!({ "enum": [self.one_of(&values), self.one_of(&values), 7, -1.5, null, true] })
            }
            8 => json!({ "const": [self.one_of(&NAMES), { "a": [] }] }),
            9..=11 => self.array(depth - 1),
            12 => self.object(depth - 1),
            13 => {
                self.features.insert("anyOf");
                json!({ "anyOf": [self.any(depth - 1), self.any(depth - 1)] })
            }
            _ => self.reference(depth - 1),
        }
    }

    fn integer(&mut self) -> Value {
        let least: i64 = self.random.random_range(-500..500);
        match self.random.random_range(0..4) {
            0 => json!({ "type": "integer" }),
            1 => json!({ "type": "integer", "minimum": least, "maximum": least + 40 }),
            2 => json!({ "type": "integer", "exclusiveMinimum": least }),
            _ => json!({ "type": "integer", "multipleOf": 7, "minimum": 0 }),
        }
    }

    fn number(&mut self) -> Value {
        match self.random.random_range(0..3) {
            0 => json!({ "type": "number" }),
            1 => json!({ "type": "number", "minimum": -2.5, "maximum": 1e3 }),
            _ => json!({ "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.125 }),
        }
    }

    fn string(&mut self) -> Value {
        let most = self.random.random_range(1..9);
        match self.random.random_range(0..4) {
            0 => json!({ "type": "string" }),
            1 => json!({ "type": "string", "minLength": most }),
            2 => json!({ "type": "string", "minLength": 1, "maxLength": most }),
            _ => {
                self.features.insert("format");
                json!({ "type": "string", "format": self.one_of(&FORMATS) })
            }
        }
    }

    fn array(&mut self, depth: u32) -> Value {
        self.features.insert("array");
        let most = self.random.random_range(1..4);
        let least = self.random.random_range(0..=most);
        let items = self.any(depth);
        match self.random.random_range(0..4) {
            0 => json!({ "type": "array", "items": items }),
            1 => json!({
                "type": "array", "prefixItems": [items, self.any(depth)], "items": false, "minItems": 1,
            }),
            _ => json!({ "type": "array", "items": items, "minItems": least, "maxItems": most }),
        }
    }

    fn object(&mut self, depth: u32) -> Value {
        if depth < 3 {
            self.features.insert("nesting");
        }
        let first = self.random.random_range(0..NAMES.len());
        let count = self.random.random_range(1..5);
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for name in NAMES.iter().cycle().skip(first).take(count) {
            if self.random.random_bool(0.7) {
                required.push(*name);
            }
            properties.insert((*name).into(), self.any(depth));
        }
        let more = match self.random.random_range(0..8) {
            0 => json!({ "type": "integer", "minimum": 0, "maximum": 9 }),
            1 => json!(true),
            _ => json!(false),
        };
        json!({
            "type": "object", "properties": properties, "required": required,
            "additionalProperties": more,
        })
    }

    /// Half of the definitions are lists that refer to themselves.
    fn reference(&mut self, depth: u32) -> Value {
        self.features.insert("$ref");
        let name = format!("d{}", self.definitions.len());
        let pointer = json!({ "$ref": format!("#/$defs/{name}") });
        // Its name is taken before what it holds takes others.
        self.definitions.insert(name.clone(), Value::Null);
        let inner = self.any(depth);
        let definition = if self.random.random_bool(0.5) {
            self.features.insert("recursion");
            json!({
                "type": "object", "required": ["value", "next"], "additionalProperties": false,
                "properties": { "value": inner, "next": { "anyOf": [pointer, { "type": "null" }] } },
            })
        } else {
            inner
        };
        self.definitions.insert(name, definition);
        pointer
    }

    fn one_of(&mut self, texts: &[&'static str]) -> &'static str {
        texts.choose(&mut self.random).expect("there is one")
    }
}
