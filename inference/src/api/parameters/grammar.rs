//! What the answer is to follow: `response_format`, and vLLM's `guided_*` and `structured_outputs`.

use super::Fields;
use super::schema::text;
use crate::api::error::ApiError;
use crate::guidance::{CompileError, Grammar};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A grammar, and the field that asked for it.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedGrammar {
    pub grammar: Grammar,
    pub parameter: &'static str,
}

/// Where in a field its JSON schema is.
const SCHEMA_IN: [(&str, &str); 3] = [
    (RESPONSE_FORMAT, ".json_schema.schema"),
    (TEXT, ".format.schema"),
    (STRUCTURED_OUTPUTS, ".json"),
];

impl WantedGrammar {
    pub fn excluded_by(&self, other: &WantedGrammar) -> ApiError {
        let name = self.parameter;
        let message = format!("`{name}` cannot be used together with `{}`.", other.parameter);
        ApiError::invalid(name, message)
    }

    /// Where in the request its schema is, if it is one.
    pub fn place_of_schema(&self) -> String {
        let inside = SCHEMA_IN.iter().find(|(field, _)| *field == self.parameter);
        format!("{}{}", self.parameter, inside.map_or("", |(_, inside)| inside))
    }

    pub fn refused(&self, error: CompileError) -> ApiError {
        match error {
            CompileError::Busy => ApiError::Busy,
            CompileError::Internal => ApiError::Internal,
            CompileError::Invalid(_) | CompileError::TooSlow => {
                let name = self.parameter;
                ApiError::invalid(name, format!("Invalid `{name}`: {error}."))
            }
            CompileError::Part { ref at, .. } => {
                let name = self.parameter;
                let place = match self.grammar {
                    Grammar::Json(_) => format!("{}{at}", self.place_of_schema()),
                    // Each of its schemas says where it stands.
                    _ => at.clone(),
                };
                let message = format!("Invalid `{name}`: {error}, at `{place}`.");
                ApiError::invalid(place, message)
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: NamedSchema },
}

/// `strict` is read for its form: a schema is always followed to the letter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedSchema {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "description")]
    _description: Option<String>,
    schema: Option<Map<String, Value>>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Text {
    format: Option<Value>,
    verbosity: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TextFormat {
    Text,
    JsonObject,
    JsonSchema(NamedSchema),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuredOutputs {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
}

const GUIDED_CHOICE: &str = "guided_choice";
const GUIDED_GRAMMAR: &str = "guided_grammar";
const GUIDED_JSON: &str = "guided_json";
const GUIDED_REGEX: &str = "guided_regex";
const RESPONSE_FORMAT: &str = "response_format";
const STRUCTURED_OUTPUTS: &str = "structured_outputs";
const TEXT: &str = "text";
const DEFAULT_VERBOSITY: &str = "medium";

/// At most one field may ask for something.
pub fn take(fields: &mut Fields) -> Result<Option<WantedGrammar>, ApiError> {
    let mut wanted = [
        (RESPONSE_FORMAT, fields.take(RESPONSE_FORMAT)?.and_then(response_format)),
        (GUIDED_JSON, fields.take(GUIDED_JSON)?.map(schema).transpose()?),
        (GUIDED_REGEX, fields.take(GUIDED_REGEX)?.map(Grammar::Regex)),
        (GUIDED_CHOICE, fields.take(GUIDED_CHOICE)?.map(Grammar::Choice)),
        (GUIDED_GRAMMAR, fields.take(GUIDED_GRAMMAR)?.map(Grammar::lark)),
        (STRUCTURED_OUTPUTS, structured_outputs(fields)?),
    ]
    .into_iter()
    .filter_map(|(parameter, grammar)| Some(WantedGrammar { grammar: grammar?, parameter }));
    let first = wanted.next();
    match (&first, wanted.next()) {
        (Some(first), Some(second)) => Err(second.excluded_by(first)),
        _ => Ok(first),
    }
}

fn response_format(format: ResponseFormat) -> Option<Grammar> {
    match format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => Some(Grammar::json_object()),
        ResponseFormat::JsonSchema { json_schema } => Some(json_schema.grammar()),
    }
}

impl NamedSchema {
    fn grammar(self) -> Grammar {
        self.schema.map_or_else(Grammar::json_object, |schema| Grammar::Json(schema.into()))
    }
}

/// The `text.format` of a response, as the response repeats it, and what it asks for.
pub fn take_text(fields: &mut Fields) -> Result<(Value, Option<WantedGrammar>), ApiError> {
    let Text { format, verbosity } = fields.take(TEXT)?.unwrap_or_default();
    if verbosity.is_some_and(|verbosity| verbosity != DEFAULT_VERBOSITY) {
        let message = format!("`{TEXT}.verbosity` is not supported: leave it out.");
        return Err(ApiError::invalid(TEXT, message));
    }
    let Some(format) = format else { return Ok((json!({ "type": "text" }), None)) };
    let read = serde_json::from_value(format.clone());
    let read =
        read.map_err(|e| ApiError::invalid(TEXT, format!("Invalid `{TEXT}.format`: {e}.")))?;
    let grammar = match read {
        TextFormat::Text => None,
        TextFormat::JsonObject => Some(Grammar::json_object()),
        TextFormat::JsonSchema(named) => Some(named.grammar()),
    };
    Ok((format, grammar.map(|grammar| WantedGrammar { grammar, parameter: TEXT })))
}

/// vLLM takes a schema as text, too.
fn schema(schema: Value) -> Result<Grammar, ApiError> {
    let Value::String(text) = &schema else { return Ok(Grammar::Json(schema)) };
    serde_json::from_str(text)
        .map(Grammar::Json)
        .map_err(|e| ApiError::invalid(GUIDED_JSON, format!("Invalid `{GUIDED_JSON}`: {e}.")))
}

fn structured_outputs(fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let Some(outputs) = fields.take::<StructuredOutputs>(STRUCTURED_OUTPUTS)? else {
        return Ok(None);
    };
    let mut wanted = [
        outputs.json.map(schema).transpose()?,
        outputs.json_object.and_then(|wanted| wanted.then(Grammar::json_object)),
        outputs.regex.map(Grammar::Regex),
        outputs.choice.map(Grammar::Choice),
        outputs.grammar.map(Grammar::lark),
    ]
    .into_iter()
    .flatten();
    match (wanted.next(), wanted.next()) {
        (Some(grammar), None) => Ok(Some(grammar)),
        _ => {
            let message = format!("`{STRUCTURED_OUTPUTS}` needs exactly one constraint.");
            Err(ApiError::invalid(STRUCTURED_OUTPUTS, message))
        }
    }
}

/// The fields in the API's description.
pub fn properties() -> Value {
    let named = json!({
        "type": "object",
        "required": ["type", "json_schema"],
        "properties": {
            "type": { "const": "json_schema" },
            "json_schema": {
                "type": "object",
                "required": ["name"],
                "properties": named_schema(),
                "additionalProperties": false,
            },
        },
    });
    json!({
        RESPONSE_FORMAT: format(named),
        GUIDED_JSON: {
            "type": ["object", "string", "null"],
            "description": "A JSON schema that the answer is valid under.",
        },
        GUIDED_REGEX: text("A regular expression that the whole answer matches."),
        GUIDED_CHOICE: {
            "type": ["array", "null"],
            "items": { "type": "string", "minLength": 1 },
            "minItems": 1,
            "description": "Texts one of which is the answer.",
        },
        GUIDED_GRAMMAR: text("A context-free grammar of the answer, in llguidance's variant of Lark."),
        STRUCTURED_OUTPUTS: {
            "type": ["object", "null"],
            "minProperties": 1,
            "maxProperties": 1,
            "properties": {
                "json": { "type": ["object", "string"] },
                "json_object": { "const": true },
                "regex": { "type": "string" },
                "choice": { "type": "array", "items": { "type": "string", "minLength": 1 }, "minItems": 1 },
                "grammar": { "type": "string" },
            },
            "additionalProperties": false,
            "description": "The same under vLLM's newer names.",
        },
    })
}

/// `text` in the API's description.
pub fn text_property() -> Value {
    let mut properties = named_schema();
    properties["type"] = json!({ "const": "json_schema" });
    let named = json!({
        "type": "object",
        "required": ["type", "name"],
        "properties": properties,
        "additionalProperties": false,
    });
    json!({
        "type": ["object", "null"],
        "properties": {
            "format": format(named),
            "verbosity": { "enum": [DEFAULT_VERBOSITY, null] },
        },
        "additionalProperties": false,
    })
}

/// Text, JSON of any kind, or what `named` describes.
fn format(named: Value) -> Value {
    let plain = json!({
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "enum": ["text", "json_object"] } },
    });
    json!({
        "anyOf": [plain, named, { "type": "null" }],
        "description": "Makes the answer JSON, of any kind or valid under a schema.",
    })
}

fn named_schema() -> Value {
    json!({
        "name": { "type": "string" },
        "description": { "type": ["string", "null"] },
        "schema": { "type": ["object", "null"] },
        "strict": { "type": ["boolean", "null"], "description": "The schema is followed either way." },
    })
}
