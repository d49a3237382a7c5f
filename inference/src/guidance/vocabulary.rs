//! The base model's tokens as llguidance wants them.

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use lorikeet_compute::model::Tokenizer;
use std::sync::Arc;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// Bounds what one grammar costs: about 20 ms to set up the lexer, 20 MB, and mostly 15 ms for a mask;
/// where it is more, the walker's allowance bounds it.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 10_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

/// `eos_tokens` end an answer; not empty, all below `vocab_size`.
pub(super) fn factory(
    tokenizer: &Tokenizer,
    vocab_size: u32,
    eos_tokens: &[u32],
) -> anyhow::Result<ParserFactory> {
    let first = *eos_tokens.first().ok_or_else(|| anyhow::anyhow!("there is no end token"))?;
    let words: Vec<Vec<u8>> = (0..vocab_size).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size, first), &words);
    let trie = trie.with_eos_tokens(eos_tokens);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env)?;
    // Its log would quote grammars.
    factory.quiet();
    *factory.limits_mut() = LIMITS;
    Ok(factory)
}

/// Empty for an id that is no token. The marker keeps special tokens from being taken for their names.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if !tokenizer.is_special(id) {
        return bytes.to_vec();
    }
    [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
}
