//! What answers follow in which calls must be valid: the model's own format, with the functions' schemas.

use super::{Function, ToolChoice, Tools};
use crate::guidance::{Grammar, Lark};
use lorikeet_compute::model::{Tokenizer, ToolFormat};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Most calls of one answer that must call something: a model that once begins to repeat itself comes
/// to an end.
pub const MAX_CALLS: usize = 16;

/// What an answer may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    Calls,
    /// Calls alone, or JSON that is valid under this schema, which stands at this place in the request.
    CallsOrJson {
        place: String,
        schema: Value,
    },
    /// Text, with calls in it where the model makes some.
    Text,
}

/// Any text, and in [`ToolFormat::Llama3`] text that is not read as a call: no line of it begins with an
/// object that begins like one.
const TEXT: &str = r"/(.|\n)*/";
const TEXT_WITHOUT_CALLS: &str = r#"/(.|\n)*/ & ~/(.|\n)*<\|python_tag\|>(.|\n)*/ & ~/((.|\n)*\n)?[ \t\r\f]*\{[ \t\r\n]*"(name|type|id|arguments|parameters)"(.|\n)*/"#;

/// Of answers whose calls are of the function that is named, or of any. Each has arguments that are valid
/// under the function's schema, or, where it need not be called and is not strict, any.
pub fn of(form: Form, tools: &Tools, format: ToolFormat, tokenizer: &Tokenizer) -> Grammar {
    let several = tools.parallel && !matches!(tools.choice, ToolChoice::Named(_));
    let more = |another: &str| match several {
        true => format!(" ({another}){{0,{}}}", MAX_CALLS - 1),
        false => String::new(),
    };
    let mark = |text: &str| match tokenizer.special(text) {
        Some(token) => format!("<[{token}]>"),
        None => quoted(text),
    };
    // Behind the opening; and openings with what is behind them, as a whole answer.
    let (opened, calls) = match format {
        ToolFormat::Llama3 => (String::new(), format!("call{}", more("\"; \" call"))),
        ToolFormat::Hermes => (
            format!("\"\\n\" call {}", quoted("\n</tool_call>")),
            format!("open opened{}", more("\"\\n\" open opened")),
        ),
        ToolFormat::Mistral => {
            (format!("\"[\" call{} \"]\"", more("\", \" call")), "open opened".to_owned())
        }
        ToolFormat::MistralV11 => {
            ("call".to_owned(), format!("open opened{}", more("open opened")))
        }
    };
    let is_forced = form == Form::Calls;
    let mut schemas = Vec::new();
    let mut grammar = match form {
        Form::Calls => format!("start: {calls}\n"),
        Form::CallsOrJson { place, schema } => {
            let json = Grammar::followed(schema.clone());
            schemas.push((place, schema));
            format!("start: {calls} | json\njson: %json {json}\n")
        }
        Form::Text if format == ToolFormat::Llama3 => {
            format!("start: {calls} | TEXT\nTEXT: {TEXT_WITHOUT_CALLS}\n")
        }
        Form::Text => {
            let begins = match tokenizer.special(format.opening()) {
                Some(token) => format!("said: TEXT <[{token}]>"),
                None => format!("said[lazy]: TEXT {}", quoted(format.opening())),
            };
            let answer = if several { "(said opened)* TEXT" } else { "said opened | TEXT" };
            format!("start: {answer}\n{begins}\nTEXT: {TEXT}\n")
        }
    };
    if format != ToolFormat::Llama3 {
        // A string takes all that is written.
        let _ = writeln!(grammar, "open: {}\nopened: {opened}", mark(format.opening()));
    }
    let callable = match tools.choice {
        ToolChoice::Named(index) => index..index + 1,
        _ => 0..tools.functions.len(),
    };
    let names = callable.clone().map(|index| format!("call_{index}")).collect::<Vec<_>>();
    let _ = writeln!(grammar, "call: {}", names.join(" | "));
    for (name, index) in names.iter().zip(callable) {
        let function = &tools.functions[index];
        let (begin, end) = match format {
            ToolFormat::MistralV11 => {
                (format!("{} {}", quoted(&function.name), mark(ToolFormat::ARGS)), "")
            }
            _ => {
                let (name, arguments) = (&function.name, format.arguments());
                (quoted(&format!("{{\"name\": \"{name}\", \"{arguments}\": ")), " \"}\"")
            }
        };
        let schema = match is_forced || function.strict {
            true => schema(function),
            false => json!({ "type": "object" }),
        };
        let _ = write!(
            grammar,
            "{name}: {begin} {name}_arguments{end}\n{name}_arguments: %json {}\n",
            Grammar::followed(schema.clone())
        );
        schemas.push((tools.form.place_of_parameters(index), schema));
    }
    Grammar::Lark(Lark { text: grammar, schemas })
}

/// Of an object, whatever else it says.
fn schema(function: &Function) -> Value {
    let Some(parameters) = &function.parameters else {
        return json!({ "type": "object", "properties": {}, "additionalProperties": false });
    };
    let mut schema: Map<String, Value> = parameters.clone();
    schema.entry("type").or_insert_with(|| json!("object"));
    schema.into()
}

/// Lark's strings are JSON's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
