//! Chat templates: Jinja as Hugging Face's `apply_chat_template` runs it
//! (<https://huggingface.co/docs/transformers/chat_templating>). A template comes from the base model
//! only, never from a customer.

use super::python::{self, JsonStyle};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use std::error::Error as _;
use time::OffsetDateTime;

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refuses these messages: the caller's mistake.
    #[error("{0}")]
    Refused(String),
    /// The template failed: the model's mistake.
    #[error("the model's chat template failed: {0}")]
    Failed(String),
    /// Returned while loading.
    #[error("the model's chat template does not parse: {0}")]
    Malformed(String),
}

/// Tokens that templates write by name.
#[derive(Debug, Clone, Default)]
pub struct TemplateTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
}

pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: TemplateTokens,
}

const NAME: &str = "chat";

impl ChatTemplate {
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| TemplateError::Malformed(e.to_string()))?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(python::call_method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| TemplateError::Malformed(format!("{e:#}")))?;
        Ok(Self { environment, tokens })
    }

    /// The prompt as text. With `add_generation_prompt` it ends where the assistant's answer begins.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let context = minijinja::context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            bos_token => self.tokens.bos.as_deref().unwrap_or_default(),
            eos_token => self.tokens.eos.as_deref().unwrap_or_default(),
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template(NAME).map_err(refusal_or_failure)?;
        template.render(context).map_err(refusal_or_failure)
    }
}

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn refusal_or_failure(error: Error) -> TemplateError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(raised) = inner.downcast_ref::<Raised>() {
            return TemplateError::Refused(raised.0.clone());
        }
        cause = inner.source();
    }
    TemplateError::Failed(error.to_string())
}

/// The date, in UTC.
fn strftime_now(format: String) -> Result<String, Error> {
    let invalid = |e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
    };
    let description =
        time::format_description::parse_strftime_owned(&format).map_err(|e| invalid(&e))?;
    OffsetDateTime::now_utc().format(&description).map_err(|e| invalid(&e))
}

/// Transformers' own filter, Python's `json.dumps`. Jinja's would escape `<`, `>`, `&` and `'` for
/// HTML, and models were not trained on that.
fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let separators = match separators.as_deref() {
        None => None,
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two")),
    };
    let style = JsonStyle {
        indent: options.get("indent")?,
        separators,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or_default(),
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or_default(),
    };
    options.assert_all_used()?;
    python::json(&value, style)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, "tojson").with_source(e))
}

/// Transformers' tag `generation` marks what the assistant said, for training: here it is any block.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, behind)) = rest.split_once("{%") {
        let Some((tag, after)) = behind.split_once("%}") else { break };
        let name = tag.trim_matches(['-', '+']).trim();
        let plain = match name {
            "generation" => tag.replace(name, "if true"),
            "endgeneration" => tag.replace(name, "endif"),
            _ => tag.to_owned(),
        };
        out.extend([before, "{%", &plain, "%}"]);
        rest = after;
    }
    out.push_str(rest);
    out
}
