//! Token counts in OpenAI's shape.

use super::generation::Counts;
use serde::Serialize;

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptTokens,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PromptTokens {
    cached_tokens: u32,
}

impl From<Counts> for Usage {
    fn from(counts: Counts) -> Self {
        Self {
            prompt_tokens: counts.prompt,
            completion_tokens: counts.completion,
            total_tokens: u64::from(counts.prompt) + u64::from(counts.completion),
            prompt_tokens_details: PromptTokens { cached_tokens: counts.cached },
        }
    }
}
