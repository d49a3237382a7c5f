//! How calls of tools are read.

use super::vars::{ConfigError, Vars};
use lorikeet_compute::model::ToolFormat;

/// How calls of tools are read out of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolCalls {
    /// As the model's chat template writes them.
    Auto,
    As(ToolFormat),
    /// Requests with tools are refused.
    Refused,
}

pub(super) fn tool_calls(vars: Vars<'_>) -> Result<ToolCalls, ConfigError> {
    let name = "LORIKEET_TOOL_CALL_PARSER";
    let value: String = vars.or(name, "auto")?;
    match value.as_str() {
        "auto" => Ok(ToolCalls::Auto),
        "llama3" => Ok(ToolCalls::As(ToolFormat::Llama3)),
        "hermes" => Ok(ToolCalls::As(ToolFormat::Hermes)),
        "mistral" => Ok(ToolCalls::As(ToolFormat::Mistral)),
        "mistral-v11" => Ok(ToolCalls::As(ToolFormat::MistralV11)),
        "none" => Ok(ToolCalls::Refused),
        _ => {
            let reason = "auto, llama3, hermes, mistral, mistral-v11 or none is wanted".into();
            Err(ConfigError::Invalid { name, value, reason })
        }
    }
}
