//! What an answer can be made to follow, as customers write it.

use super::{CompileError, schema};
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Most bytes of a grammar as text.
const MAX_BYTES: usize = 64 << 10;
/// Deepest nesting of brackets in a grammar: parsers of such text recurse.
const MAX_NESTING: usize = 100;
const MAX_CHOICES: usize = 1024;

/// Between two tokens of JSON: nothing, a space, or a new line with its indentation. Any more, and a
/// model that once begins to write blanks may never come to an end.
const JSON_BLANKS: &str = r" |\n {0,16}";

#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that is valid under this schema.
    Json(Value),
    /// The whole answer matches, in the syntax of Rust's regex crate.
    Regex(String),
    /// One of these, to the letter.
    Choice(Vec<String>),
    Lark(Lark),
}

/// llguidance's variant of Lark.
#[derive(Debug, Clone, PartialEq)]
pub struct Lark {
    pub text: String,
    /// JSON schemas that the text was made of, each with where its customer wrote it.
    pub schemas: Vec<(String, Value)>,
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::Json(json!({ "type": "object" }))
    }

    /// A customer's own.
    pub fn lark(text: String) -> Self {
        Self::Lark(Lark { text, schemas: Vec::new() })
    }

    /// The schema as answers follow it: with a few blanks, at most, between the tokens of JSON.
    pub fn followed(mut schema: Value) -> Value {
        schema::tighten(&mut schema);
        if let Value::Object(fields) = &mut schema {
            fields.insert("x-guidance".into(), json!({ "whitespace_pattern": JSON_BLANKS }));
        }
        schema
    }

    /// Equal grammars have one name.
    pub fn digest(&self) -> [u8; 32] {
        let (kind, text) = self.text();
        Sha256::new().chain_update([kind]).chain_update(text).finalize().into()
    }

    /// Of its text.
    pub(super) fn bytes(&self) -> usize {
        self.text().1.len()
    }

    /// Looks at nothing that costs more than reading it once.
    pub fn check(&self) -> Result<(), CompileError> {
        let refused = |what: String| Err(CompileError::Invalid(what));
        let (_, text) = self.text();
        if text.len() > MAX_BYTES {
            return refused(format!("it has {} bytes, {MAX_BYTES} are the most", text.len()));
        }
        if nesting(&text) > MAX_NESTING {
            return refused(format!("it is nested deeper than {MAX_NESTING} levels"));
        }
        match self {
            Self::Json(Value::Object(_)) => Ok(()),
            Self::Json(_) => refused("a schema is an object".into()),
            Self::Choice(choices) if choices.is_empty() => refused("there is no choice".into()),
            Self::Choice(choices) if choices.len() > MAX_CHOICES => {
                refused(format!("there are {} choices, {MAX_CHOICES} are the most", choices.len()))
            }
            Self::Choice(choices) if choices.iter().any(String::is_empty) => {
                refused("a choice is empty".into())
            }
            Self::Choice(_) | Self::Regex(_) | Self::Lark(_) => Ok(()),
        }
    }

    /// The schemas in it, each with where it was written.
    pub(super) fn schemas(&self) -> Vec<(&str, &Value)> {
        match self {
            Self::Json(schema) => vec![("", schema)],
            Self::Lark(Lark { schemas, .. }) => {
                schemas.iter().map(|(place, schema)| (place.as_str(), schema)).collect()
            }
            Self::Regex(_) | Self::Choice(_) => Vec::new(),
        }
    }

    pub(super) fn to_llguidance(&self) -> TopLevelGrammar {
        match self {
            Self::Json(schema) => TopLevelGrammar::from_json_schema(Self::followed(schema.clone())),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(choices) => {
                // Lark's strings are JSON's.
                let quoted = choices.iter().map(|choice| Value::from(choice.as_str()).to_string());
                let alternatives = quoted.collect::<Vec<_>>().join(" | ");
                TopLevelGrammar::from_lark(format!("start: {alternatives}"))
            }
            Self::Lark(Lark { text, .. }) => TopLevelGrammar::from_lark(text.clone()),
        }
    }

    fn text(&self) -> (u8, String) {
        match self {
            Self::Json(schema) => (0, schema.to_string()),
            Self::Regex(regex) => (1, regex.clone()),
            Self::Choice(choices) => (2, Value::from(choices.as_slice()).to_string()),
            Self::Lark(Lark { text, .. }) => (3, text.clone()),
        }
    }
}

/// Brackets that are open at once; those inside of strings count, too.
fn nesting(text: &str) -> usize {
    let (mut open, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}
