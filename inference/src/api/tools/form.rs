//! How the endpoints spell tools.

use super::call::is_of_name;
use super::{Function, ToolChoice, Tools};
use crate::api::error::ApiError;
use crate::api::parameters::Fields;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// As OpenAI has it.
pub const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;

/// Where a function's fields stand: in an object of this name, or beside `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolForm {
    inner: Option<&'static str>,
}

pub const CHAT: ToolForm = ToolForm { inner: Some("function") };
pub const RESPONSES: ToolForm = ToolForm { inner: None };

impl ToolForm {
    pub fn take(self, fields: &mut Fields) -> Result<Tools, ApiError> {
        let raw: Vec<Map<String, Value>> = fields.take("tools")?.unwrap_or_default();
        if raw.len() > MAX_TOOLS {
            return Err(ApiError::invalid("tools", format!("At most {MAX_TOOLS} tools.")));
        }
        let functions = raw.into_iter().enumerate().map(|(index, tool)| {
            self.function(tool).map_err(|error| error.within(format_args!("tools[{index}]")))
        });
        let functions: Vec<Function> = functions.collect::<Result<_, _>>()?;
        let mut names = HashSet::new();
        if let Some(twice) = functions.iter().find(|f| !names.insert(f.name.as_str())) {
            let message = format!("There are two tools of the name `{}`.", twice.name);
            return Err(ApiError::invalid("tools", message));
        }
        let choice = self.choice(fields.take("tool_choice")?, &functions)?;
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        Ok(Tools { form: self, functions, choice, parallel })
    }

    /// Where the schema of a function's arguments stands in the request.
    pub fn place_of_parameters(self, function: usize) -> String {
        let inner = self.inner.map(|inner| format!(".{inner}")).unwrap_or_default();
        format!("tools[{function}]{inner}.parameters")
    }

    fn function(self, tool: Map<String, Value>) -> Result<Function, ApiError> {
        let mut fields = Fields::new(tool);
        let kind: String = fields.required("type")?;
        if kind != "function" {
            let message = format!("A tool of type `{kind}` is not supported, only functions are.");
            return Err(ApiError::invalid("type", message));
        }
        let Some(inner) = self.inner else { return function(fields) };
        let function = function(Fields::new(fields.required(inner)?));
        fields.finish()?;
        function.map_err(|error| error.within(inner))
    }

    fn choice(self, choice: Option<Value>, functions: &[Function]) -> Result<ToolChoice, ApiError> {
        let invalid = |message: String| Err(ApiError::invalid("tool_choice", message));
        let Some(choice) = choice else { return Ok(ToolChoice::Auto) };
        if choice != "none" && choice != "auto" && functions.is_empty() {
            return invalid("`tool_choice` needs `tools`.".into());
        }
        if let Some(word) = choice.as_str() {
            return match word {
                "none" => Ok(ToolChoice::None),
                "auto" => Ok(ToolChoice::Auto),
                "required" => Ok(ToolChoice::Required),
                _ => invalid(format!("`{word}` is not none, auto, required or a function.")),
            };
        }
        let name = match self.inner {
            Some(inner) => &choice[inner]["name"],
            None => &choice["name"],
        };
        match (choice["type"].as_str(), name.as_str()) {
            (Some("function"), Some(name)) => {
                match functions.iter().position(|function| function.name == name) {
                    Some(index) => Ok(ToolChoice::Named(index)),
                    None => {
                        invalid(format!("`tools` has no function `{name}`: name one that it has."))
                    }
                }
            }
            _ => invalid("A choice is none, auto, required, or names a function.".into()),
        }
    }
}

fn function(mut fields: Fields) -> Result<Function, ApiError> {
    let function = Function {
        name: fields.required("name")?,
        description: fields.take("description")?,
        parameters: fields.take("parameters")?,
        strict: fields.flag("strict")?,
    };
    fields.finish()?;
    let is_name =
        (1..=MAX_NAME).contains(&function.name.len()) && function.name.chars().all(is_of_name);
    if !is_name {
        let message = format!("A name has 1 to {MAX_NAME} letters, digits, dots, `_` and `-`.");
        return Err(ApiError::invalid("name", message));
    }
    Ok(function)
}
