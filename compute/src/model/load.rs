use super::assemble::assemble;
use super::chat_template::{TemplateSources, TemplateTokens};
use super::gguf::Gguf;
use super::hugging_face::HuggingFace;
use super::{ChatMessage, ChatTemplate, FunctionCall, LoadProgress, ModelConfig, ModelError};
use super::{ModelWeights, Specials, TemplateError, Tokenizer, TokenizerError, ToolCall};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A base model, ready for a backend.
pub struct LoadedModel {
    pub weights: ModelWeights,
    pub tokenizer: Tokenizer,
    pub chat_template: ChatTemplate,
}

/// Why messages do not become a prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// What a path holds.
enum Files {
    Gguf(Gguf),
    HuggingFace(HuggingFace),
}

/// Loads a `.gguf` file, or a directory in Hugging Face's layout. `name` is the model's public id;
/// without one it is taken from the path. Reads and converts the weights on all cores; those that a
/// file has as they are served stay there, mapped.
pub fn load(
    path: &Path,
    name: Option<&str>,
    progress: &LoadProgress,
) -> Result<LoadedModel, ModelError> {
    let id = id(path, name);
    match open(path)? {
        Files::Gguf(gguf) => load_gguf(path, &gguf, &id, progress),
        Files::HuggingFace(files) => load_hugging_face(path, &files, &id, progress),
    }
}

/// The configuration alone. Its `weights_digest` is not known without the weights.
pub fn load_config(path: &Path, name: Option<&str>) -> Result<ModelConfig, ModelError> {
    match open(path)? {
        Files::Gguf(gguf) => gguf.config(&id(path, name)),
        Files::HuggingFace(files) => files.config(&id(path, name)),
    }
}

/// Configuration and weights, as [`load`] reads them, of a model that nobody speaks to.
pub fn load_weights(
    path: &Path,
    name: Option<&str>,
    progress: &LoadProgress,
) -> Result<ModelWeights, ModelError> {
    let id = id(path, name);
    match open(path)? {
        Files::Gguf(gguf) => assemble(gguf.config(&id)?, &gguf, progress),
        Files::HuggingFace(files) => assemble(files.config(&id)?, &files, progress),
    }
}

fn open(path: &Path) -> Result<Files, ModelError> {
    if path.is_dir() {
        return HuggingFace::open(path).map(Files::HuggingFace);
    }
    if path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return Gguf::open(path).map(Files::Gguf);
    }
    // A path that does not exist says so; any other file is not a model.
    fs::metadata(path).map_err(ModelError::io(path))?;
    Err(ModelError::NotAModel { path: path.into() })
}

fn id(path: &Path, name: Option<&str>) -> String {
    name.map_or_else(|| id_from(path), str::to_owned)
}

fn load_gguf(
    path: &Path,
    gguf: &Gguf,
    id: &str,
    progress: &LoadProgress,
) -> Result<LoadedModel, ModelError> {
    let config = gguf.config(id)?;
    let tokenizer = gguf.tokenizer()?;
    let template = gguf.optional_string("tokenizer.chat_template")?;
    let tool_use = gguf.optional_string("tokenizer.chat_template.tool_use")?;
    let chat_template = chat_template(path, template, tool_use, gguf.template_tokens()?)?;
    check_vocabulary(path, &tokenizer, config.spec.vocab_size)?;
    let weights = assemble(config, gguf, progress)?;
    Ok(LoadedModel { weights, tokenizer, chat_template })
}

fn load_hugging_face(
    directory: &Path,
    files: &HuggingFace,
    id: &str,
    progress: &LoadProgress,
) -> Result<LoadedModel, ModelError> {
    let config = files.config(id)?;
    let path = files.tokenizer_path();
    let json = fs::read(&path).map_err(ModelError::io(&path))?;
    let mut tokenizer = Tokenizer::from_json(&json).map_err(|e| e.in_file(&path))?;
    let templates = files.templates()?;
    if let Some(adds) = templates.adds_bos {
        let bos = templates.tokens.bos.as_deref().filter(|_| adds);
        tokenizer.set_beginning(bos.and_then(|bos| tokenizer.special(bos)));
    }
    let (chat, tool_use) = (templates.chat.as_deref(), templates.tool_use.as_deref());
    let chat_template = chat_template(directory, chat, tool_use, templates.tokens)?;
    check_vocabulary(&path, &tokenizer, config.spec.vocab_size)?;
    let weights = assemble(config, files, progress)?;
    Ok(LoadedModel { weights, tokenizer, chat_template })
}

fn chat_template(
    path: &Path,
    chat: Option<&str>,
    tool_use: Option<&str>,
    tokens: TemplateTokens,
) -> Result<ChatTemplate, ModelError> {
    let chat = chat.ok_or_else(|| {
        ModelError::unsupported(path, "a model without a chat template (use its instruct version)")
    })?;
    ChatTemplate::new(TemplateSources { chat, tool_use }, tokens)
        .map_err(|e| ModelError::unsupported(path, e.to_string()))
}

/// Every token must have a row in the embedding; rows without a token are padding.
fn check_vocabulary(path: &Path, tokenizer: &Tokenizer, rows: u32) -> Result<(), ModelError> {
    let tokens = tokenizer.vocab_size();
    if tokens <= rows as usize {
        return Ok(());
    }
    let reason = format!("the tokenizer has {tokens} tokens, the embedding only {rows} rows");
    Err(ModelError::malformed(path, reason))
}

/// The last part of the path, without `.gguf` and the name of a quantization before it.
fn id_from(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let Some(stem) = name.strip_suffix(".gguf") else { return name.into_owned() };
    match stem.rsplit_once('.') {
        Some((id, quantization)) if is_quantization(quantization) => id.into(),
        _ => stem.into(),
    }
}

fn is_quantization(part: &str) -> bool {
    let bits = part.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let letters = &part[..part.len() - bits.len()];
    matches!(letters.to_ascii_uppercase().as_str(), "Q" | "IQ" | "F" | "BF")
        && bits.starts_with(|c: char| c.is_ascii_digit())
}

impl LoadedModel {
    /// See [`ChatTemplate::prompt`].
    pub fn prompt(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, PromptError> {
        self.chat_template.prompt(&self.tokenizer, messages, &[])
    }
}

impl ChatTemplate {
    /// The prompt of a chat, up to where the assistant's answer begins. Only the template can write
    /// special tokens: their names inside a message or a tool stay text. A template that knows no tools
    /// is helped out. `tools` as in [`ChatTemplate::render`].
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[ChatMessage],
        tools: &[Value],
    ) -> Result<Vec<u32>, PromptError> {
        let mut messages: Vec<ChatMessage> =
            messages.iter().map(|message| defused(tokenizer, message)).collect();
        let tools: Vec<Value> = tools.iter().map(|tool| defused_json(tokenizer, tool)).collect();
        let format = self.tool_format();
        let text = if self.knows_tools() {
            format.fit_ids(&mut messages);
            self.render(&messages, &tools, true)?
        } else {
            self.render(&format.as_text(messages, &tools), &[], true)?
        };
        Ok(tokenizer.encode(&text, Specials::Recognised)?)
    }
}

fn defused(tokenizer: &Tokenizer, message: &ChatMessage) -> ChatMessage {
    let text = |text: &String| tokenizer.defuse(text).into_owned();
    let call = |call: &ToolCall| ToolCall {
        id: text(&call.id),
        function: FunctionCall {
            name: text(&call.function.name),
            arguments: defused_json(tokenizer, &call.function.arguments),
        },
        ..*call
    };
    ChatMessage {
        role: text(&message.role),
        content: text(&message.content),
        tool_calls: message.tool_calls.iter().map(call).collect(),
        tool_call_id: message.tool_call_id.as_ref().map(text),
        name: message.name.as_ref().map(text),
    }
}

fn defused_json(tokenizer: &Tokenizer, value: &Value) -> Value {
    match value {
        Value::String(text) => tokenizer.defuse(text).into(),
        Value::Array(items) => items.iter().map(|item| defused_json(tokenizer, item)).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                (tokenizer.defuse(name).into_owned(), defused_json(tokenizer, value))
            });
            Value::Object(fields.collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
