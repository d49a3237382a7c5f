//! Tools: the functions that a request offers, how the model is told of them, and the calls in its answer.

mod call;
mod form;
mod grammar;
mod parser;
pub mod schema;
#[cfg(test)]
mod tests;

pub use form::{CHAT, RESPONSES, ToolForm};
pub use parser::{CallParser, Part};

use super::Api;
use super::error::ApiError;
use super::parameters::{Parameters, WantedGrammar};
use crate::guidance::Grammar;
use grammar::Form;
use lorikeet_compute::model::{Tokenizer, ToolFormat};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What a request says of tools.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    pub form: ToolForm,
    pub functions: Vec<Function>,
    pub choice: ToolChoice,
    /// Whether one answer may have several calls.
    pub parallel: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema. None: the function takes nothing.
    pub parameters: Option<Map<String, Value>>,
    /// As OpenAI means it: the schema is to be followed to the letter.
    pub strict: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model is not told of the tools.
    None,
    Auto,
    Required,
    /// Index of the function.
    Named(usize),
}

/// How calls are read out of the answers to one request.
#[derive(Debug, Clone)]
pub struct ToolUse {
    format: ToolFormat,
    names: Arc<[String]>,
}

impl Tools {
    /// Sets what the answers are to follow, where calls in them must be valid. None: they are text.
    pub fn prepare(
        &self,
        api: &Api,
        parameters: &mut Parameters,
    ) -> Result<Option<ToolUse>, ApiError> {
        if self.functions.is_empty() || self.choice == ToolChoice::None {
            return Ok(None);
        }
        if !api.calls_tools {
            let message = "The model of this node does not call tools: leave `tools` out.";
            return Err(ApiError::invalid("tools", message));
        }
        let format = api.chat_template.tool_format();
        if let Some(form) = self.form_of_answers(parameters.grammar.take(), format)? {
            let grammar = grammar::of(form, self, format, &api.tokenizer);
            parameters.grammar = Some(WantedGrammar { grammar, parameter: "tools" });
        }
        let names = self.functions.iter().map(|function| function.name.clone()).collect();
        Ok(Some(ToolUse { format, names }))
    }

    /// None: nothing is enforced. `wanted` is the form of an answer's text: one that must be calls has none.
    fn form_of_answers(
        &self,
        wanted: Option<WantedGrammar>,
        format: ToolFormat,
    ) -> Result<Option<Form>, ApiError> {
        let is_forced = self.choice != ToolChoice::Auto;
        match wanted {
            None if is_forced => Ok(Some(Form::Calls)),
            None if self.functions.iter().any(|function| function.strict) => Ok(Some(Form::Text)),
            None => Ok(None),
            // A call is a JSON object there, too: which of the two is meant would not be clear in time.
            Some(WantedGrammar { parameter, .. }) if !is_forced && format == ToolFormat::Llama3 => {
                let message = format!(
                    "`{parameter}` cannot be used together with `tools` on this model, unless \
                     `tool_choice` says that it must call something, or `none`."
                );
                Err(ApiError::invalid(parameter, message))
            }
            Some(wanted) => match &wanted.grammar {
                Grammar::Json(_) if is_forced => Ok(Some(Form::Calls)),
                Grammar::Json(schema) => Ok(Some(Form::CallsOrJson {
                    place: wanted.place_of_schema(),
                    schema: schema.clone(),
                })),
                _ => {
                    let parameter = wanted.parameter;
                    let message = format!(
                        "`{parameter}` cannot be used together with `tools`, unless `tool_choice` is \
                         `none`; a JSON schema can."
                    );
                    Err(ApiError::invalid(parameter, message))
                }
            },
        }
    }

    /// What the chat template is given.
    pub fn told(&self) -> Vec<Value> {
        if self.choice == ToolChoice::None {
            return Vec::new();
        }
        self.functions.iter().map(Function::told).collect()
    }
}

impl Function {
    fn told(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = json!(description);
        }
        function["parameters"] = match &self.parameters {
            Some(parameters) => json!(parameters),
            None => json!({ "type": "object", "properties": {} }),
        };
        json!({ "type": "function", "function": function })
    }
}

impl ToolUse {
    /// For one answer.
    pub fn parser(&self) -> CallParser {
        CallParser::new(self.format, self.names.clone())
    }

    /// The special tokens that are part of a call.
    pub fn shown(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        self.format.marks().iter().filter_map(|mark| tokenizer.special(mark)).collect()
    }
}

/// What a client answers a call by.
pub fn new_call_id() -> String {
    format!("call_{}", uuid::Uuid::new_v4().simple())
}
