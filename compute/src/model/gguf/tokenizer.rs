//! The tokenizer in a GGUF file's metadata.

use super::Gguf;
use crate::model::chat_template::TemplateTokens;
use crate::model::tokenizer::{BytePairs, SentencePieces};
use crate::model::{ModelError, Tokenizer, TokenizerError};

/// The names of Llama 3's pre-tokenizer.
const LLAMA3: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];

impl Gguf {
    pub(in crate::model) fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let kind = self.string("tokenizer.ggml.model")?;
        let tokens = self.strings("tokenizer.ggml.tokens")?;
        let kinds = self.integers("tokenizer.ggml.token_type")?;
        let pre = self.optional_string("tokenizer.ggml.pre")?;
        let tokenizer = match kind {
            "gpt2" => Tokenizer::from_byte_pairs(BytePairs {
                rule: self.string("tokenizer.ggml.pre")?,
                merges: self.strings("tokenizer.ggml.merges")?,
                kinds,
                tokens,
            }),
            "llama" => Tokenizer::from_sentence_pieces(SentencePieces {
                scores: self.floats("tokenizer.ggml.scores")?,
                unknown: self.optional_u32("tokenizer.ggml.unknown_token_id")?.unwrap_or(0),
                space_prefix: self
                    .optional_bool("tokenizer.ggml.add_space_prefix")?
                    .unwrap_or(true),
                kinds,
                tokens,
            }),
            other => Err(TokenizerError::Unsupported(format!(
                "the tokenizer {other} (gpt2, byte-level BPE, and llama, SentencePiece, are served)"
            ))),
        };
        let mut tokenizer = tokenizer.map_err(|e| e.in_file(&self.path))?;
        // What llama.cpp takes for granted where the file does not say it.
        let begins = kind == "llama" || pre.is_some_and(|pre| LLAMA3.contains(&pre));
        let begins = self.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(begins);
        let beginning = self.optional_u32("tokenizer.ggml.bos_token_id")?;
        tokenizer.set_beginning(beginning.filter(|_| begins));
        Ok(tokenizer)
    }

    /// The texts of the tokens that templates write by name.
    pub(in crate::model) fn template_tokens(&self) -> Result<TemplateTokens, ModelError> {
        let tokens = self.strings("tokenizer.ggml.tokens")?;
        let text_of = |key| -> Result<Option<String>, ModelError> {
            let id = self.optional_u32(key)?;
            Ok(id.and_then(|id| tokens.get(id as usize)).map(|token| token.to_string()))
        };
        Ok(TemplateTokens {
            bos: text_of("tokenizer.ggml.bos_token_id")?,
            eos: text_of("tokenizer.ggml.eos_token_id")?,
        })
    }
}
