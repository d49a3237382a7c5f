//! What answers follow that must be calls: the model's own format, with the functions' schemas.

use super::{Function, ToolChoice, Tools};
use crate::guidance::{Grammar, Lark};
use lorikeet_compute::model::{Tokenizer, ToolFormat};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Most calls of one answer that must call something: a model that once begins to repeat itself comes
/// to an end.
pub const MAX_CALLS: usize = 16;

/// One call of the function that is named, or calls of any, each with arguments that are valid under
/// the function's schema.
pub fn of_calls(tools: &Tools, format: ToolFormat, tokenizer: &Tokenizer) -> Grammar {
    let callable = match tools.choice {
        ToolChoice::Named(index) => index..index + 1,
        _ => 0..tools.functions.len(),
    };
    let several = tools.parallel && !matches!(tools.choice, ToolChoice::Named(_));
    let more = |another: &str| match several {
        true => format!(" ({another}){{0,{}}}", MAX_CALLS - 1),
        false => String::new(),
    };
    let opening = match tokenizer.special(format.opening()) {
        Some(token) => format!("<[{token}]>"),
        None => quoted(format.opening()),
    };
    let mut grammar = match format {
        ToolFormat::Llama3 => format!("start: call{}\n", more("\"; \" call")),
        ToolFormat::Hermes => {
            let (closing, more) = (quoted("\n</tool_call>"), more("\"\\n\" wrapped"));
            format!("start: wrapped{more}\nwrapped: {opening} \"\\n\" call {closing}\n")
        }
        ToolFormat::Mistral => {
            format!("start: {opening} \"[\" call{} \"]\"\n", more("\", \" call"))
        }
    };
    let calls = callable.clone().map(|index| format!("call_{index}")).collect::<Vec<_>>();
    grammar += &format!("call: {}\n", calls.join(" | "));
    let mut schemas = Vec::new();
    for (name, index) in calls.iter().zip(callable) {
        let function = &tools.functions[index];
        let begin = format!("{{\"name\": \"{}\", \"{}\": ", function.name, format.arguments());
        let schema = schema(function);
        // A string takes all that is written.
        let _ = write!(
            grammar,
            "{name}: {} {name}_arguments \"}}\"\n{name}_arguments: %json {}\n",
            quoted(&begin),
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
