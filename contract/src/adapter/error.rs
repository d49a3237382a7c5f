//! Why an adapter is refused, in words that its owner can act on.

use crate::base_model::Linear;

/// Longest piece of a customer's own text repeated in a message, in characters.
const MAX_QUOTED_CHARS: usize = 160;

/// Why an adapter is refused. Every message names the file, key or tensor and says what to do;
/// [`AdapterError::code`] is for programs and does not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    #[error(
        "`{0}` is missing: upload the directory that PEFT's save_pretrained wrote, with adapter_config.json and adapter_model.safetensors"
    )]
    MissingFile(&'static str),
    #[error(
        "{0} is an archive, and archives are not unpacked: upload adapter_config.json and adapter_model.safetensors themselves"
    )]
    Archive(String),
    #[error(
        "{0} is a pickle, which can run code when it is opened and is never read: save the adapter again with safe_serialization=True to get adapter_model.safetensors"
    )]
    Pickle(String),
    #[error(
        "{0} is not a file of an adapter: upload only adapter_config.json and adapter_model.safetensors"
    )]
    UnexpectedFile(String),
    #[error("`{file}` has {bytes} bytes, at most {limit} are accepted")]
    FileTooLarge { file: &'static str, bytes: u64, limit: u64 },
    #[error("adapter_config.json {0}")]
    Config(String),
    #[error("adapter_config.json uses {key}: {reason}")]
    UnsupportedConfig { key: String, reason: String },
    #[error("adapter_model.safetensors {0}")]
    Safetensors(String),
    #[error("tensor {tensor} has dtype {dtype}: save the adapter in F32, F16 or BF16")]
    Dtype { tensor: String, dtype: String },
    #[error(
        "target_modules names {0}, which is no linear layer of the base model: the adapter was trained for another model"
    )]
    UnknownTarget(String),
    #[error("{0} cannot carry an adapter here: train with target_modules out of {names}", names = linears())]
    UnsupportedModule(String),
    #[error("tensor {tensor} is not served: {reason}")]
    UnknownTensor { tensor: String, reason: &'static str },
    #[error(
        "{what} is for layer {layer}, but the base model has layers 0 to {}: the adapter was trained for another model",
        num_layers.saturating_sub(1)
    )]
    LayerOutOfRange { what: String, layer: u64, num_layers: u32 },
    #[error(
        "tensor {tensor} has shape {actual}, the base model needs {expected}: the adapter was trained for another model"
    )]
    Shape { tensor: String, actual: String, expected: String },
    #[error("tensor {tensor} has rank {actual}, but {source_of_rank} says {expected}")]
    Rank { tensor: String, actual: u64, source_of_rank: &'static str, expected: u64 },
    #[error("{module} has no {missing}: {reason}")]
    MissingTensor { module: String, missing: &'static str, reason: &'static str },
    #[error(
        "tensor {tensor} holds {value} at element {index}: the training diverged, upload a checkpoint from before that"
    )]
    NonFinite { tensor: String, value: &'static str, index: u64 },
}

impl AdapterError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingFile(_) => "missing_file",
            Self::Archive(_) => "archive_not_accepted",
            Self::Pickle(_) => "pickle_not_accepted",
            Self::UnexpectedFile(_) => "unexpected_file",
            Self::FileTooLarge { .. } => "file_too_large",
            Self::Config(_) => "invalid_config",
            Self::UnsupportedConfig { .. } => "unsupported_config",
            Self::Safetensors(_) => "invalid_safetensors",
            Self::Dtype { .. } => "unsupported_dtype",
            Self::UnknownTarget(_) => "unknown_target",
            Self::UnsupportedModule(_) => "unsupported_module",
            Self::UnknownTensor { .. } => "unknown_tensor",
            Self::LayerOutOfRange { .. } => "layer_out_of_range",
            Self::Shape { .. } => "shape_mismatch",
            Self::Rank { .. } => "rank_mismatch",
            Self::MissingTensor { .. } => "missing_tensor",
            Self::NonFinite { .. } => "non_finite_value",
        }
    }
}

fn linears() -> String {
    Linear::ALL.map(Linear::as_str).join(", ")
}

/// A customer's own text for a message: in backticks, cut, control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    format!("`{}`", cut(text))
}

/// A parser's message, which may repeat the customer's text at any length.
pub(super) fn cut(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.into() };
    let mut shown: String = text.chars().take(MAX_QUOTED_CHARS).map(escape).collect();
    if text.chars().nth(MAX_QUOTED_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}
