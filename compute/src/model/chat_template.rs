//! Chat templates: Jinja as Hugging Face's `apply_chat_template` runs it
//! (<https://huggingface.co/docs/transformers/chat_templating>). A template comes from the base model
//! only, never from a customer.

use super::python::{self, JsonStyle};
use super::tools::{ToolCall, ToolFormat};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use std::error::Error as _;
use time::OffsetDateTime;

/// One turn of a chat, with the fields that templates read. Templates ask whether those of tools are there.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatMessage {
    /// system, user, assistant, or tool.
    pub role: String,
    pub content: String,
    /// What the assistant called in this turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a turn of a tool answers, and the function called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatMessage {
    /// A turn of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
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

/// The texts of a model's templates.
#[derive(Debug, Clone, Copy)]
pub struct TemplateSources<'s> {
    pub chat: &'s str,
    /// Used instead where there are tools; some models have one.
    pub tool_use: Option<&'s str>,
}

impl<'s> From<&'s str> for TemplateSources<'s> {
    fn from(chat: &'s str) -> Self {
        Self { chat, tool_use: None }
    }
}

pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: TemplateTokens,
    /// How the model writes calls.
    tool_format: ToolFormat,
    /// Whether the template itself tells the model of tools.
    knows_tools: bool,
}

const CHAT: &str = "chat";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    pub fn new<'s>(
        sources: impl Into<TemplateSources<'s>>,
        tokens: TemplateTokens,
    ) -> Result<Self, TemplateError> {
        let TemplateSources { chat, tool_use } = sources.into();
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
        for (name, source) in [(CHAT, Some(chat)), (TOOL_USE, tool_use)] {
            let Some(source) = source else { continue };
            environment
                .add_template_owned(name, without_generation_tags(source))
                .map_err(|e| TemplateError::Malformed(format!("{e:#}")))?;
        }
        let of_tools = tool_use.unwrap_or(chat);
        Ok(Self {
            environment,
            tokens,
            tool_format: ToolFormat::of_template(of_tools),
            knows_tools: of_tools.contains("tools"),
        })
    }

    pub fn tool_format(&self) -> ToolFormat {
        self.tool_format
    }

    /// For a model that calls tools in another way than its template lets one think.
    pub fn set_tool_format(&mut self, format: ToolFormat) {
        self.tool_format = format;
    }

    pub fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// The prompt as text. With `add_generation_prompt` it ends where the assistant's answer begins.
    /// `tools` are objects `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let tools = (!tools.is_empty()).then(|| Value::from(Serde(tools)));
        let has_own = tools.is_some() && self.environment.get_template(TOOL_USE).is_ok();
        let name = if has_own { TOOL_USE } else { CHAT };
        let context = minijinja::context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            bos_token => self.tokens.bos.as_deref().unwrap_or_default(),
            eos_token => self.tokens.eos.as_deref().unwrap_or_default(),
            tools,
            documents => (),
        };
        let template = self.environment.get_template(name).map_err(refusal_or_failure)?;
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
