//! Text to tokens and back: byte-level BPE through the `tokenizers` crate.

use super::detokenizer::Detokenizer;
use std::borrow::Cow;
use std::sync::Arc;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, DecoderWrapper};

/// What the texts of special tokens mean in a text to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They become those tokens: for what a chat template wrote.
    Recognised,
    /// They are text like any other: for what a customer wrote.
    AsText,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Returned while loading.
    #[error("the tokenizer does not read: {0}")]
    Malformed(String),
    /// Returned while loading.
    #[error("the tokenizer needs something that is not served: {0}")]
    Unsupported(String),
    #[error("the text could not be tokenized: {0}")]
    Encode(String),
}

/// A Unicode noncharacter, never part of a text that is meant for others (Unicode, section 23.7). It marks
/// places where a customer's text must not be read as a special token; see [`Tokenizer::defuse`].
const MARK: char = '\u{FDD0}';

/// Encodes as Hugging Face does. Special tokens are found here and not by the inner tokenizer, so that
/// it depends on the text's origin whether they are recognised.
pub struct Tokenizer {
    /// Takes special tokens for text.
    inner: tokenizers::Tokenizer,
    /// Longest first.
    specials: Vec<Special>,
    /// First characters of the special tokens.
    firsts: Vec<char>,
    pieces: Arc<Pieces>,
}

struct Special {
    id: u32,
    text: String,
    /// The token takes the whitespace before or behind it along.
    lstrip: bool,
    rstrip: bool,
}

/// What each token stands for.
pub(super) struct Pieces(Vec<Piece>);

#[derive(Default)]
struct Piece {
    bytes: Box<[u8]>,
    special: bool,
}

/// A byte-level BPE as GGUF metadata describe it.
pub(super) struct BytePairs<'a> {
    /// `tokenizer.ggml.pre`, the name of a rule by which text is cut before the merges.
    pub rule: &'a str,
    pub tokens: Vec<&'a str>,
    /// 1 ordinary, 3 special, 4 added by a user; of the same length as `tokens`.
    pub kinds: Vec<i64>,
    /// Two tokens with a space between, in order of precedence.
    pub merges: Vec<&'a str>,
}

const KIND_SPECIAL: i64 = 3;
const KIND_ADDED: i64 = 4;

impl Tokenizer {
    /// From a Hugging Face `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| TokenizerError::Malformed(e.to_string()))?;
        match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => {}
            _ => {
                let what = "a decoder that is not ByteLevel (byte-level BPE is served)";
                return Err(TokenizerError::Unsupported(what.into()));
            }
        }
        Self::new(inner)
    }

    pub(super) fn from_byte_pairs(pairs: BytePairs<'_>) -> Result<Self, TokenizerError> {
        let pre_tokenizer = pre_tokenizer(pairs.rule)?;
        if pairs.kinds.len() != pairs.tokens.len() {
            let (kinds, tokens) = (pairs.kinds.len(), pairs.tokens.len());
            return Err(TokenizerError::Malformed(format!("{kinds} types of {tokens} tokens")));
        }
        let vocab: Vocab = (0..).zip(&pairs.tokens).map(|(id, t)| (t.to_string(), id)).collect();
        let merges: Merges = pairs
            .merges
            .iter()
            .map(|m| m.split_once(' ').map(|(a, b)| (a.into(), b.into())))
            .collect::<Option<_>>()
            .ok_or_else(|| TokenizerError::Malformed("a merge is not two tokens".into()))?;
        let malformed = |e: tokenizers::Error| TokenizerError::Malformed(e.to_string());
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(malformed)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(pre_tokenizer));
        inner.with_decoder(Some(ByteLevel::default()));
        let of_kind = |kind| {
            let pairs = pairs.tokens.iter().zip(&pairs.kinds);
            pairs.filter(move |(_, k)| **k == kind).map(|(token, _)| token.to_string())
        };
        let specials = of_kind(KIND_SPECIAL).map(|token| AddedToken::from(token, true));
        inner.add_special_tokens(specials).map_err(malformed)?;
        let added =
            of_kind(KIND_ADDED).map(|token| AddedToken::from(token, false).normalized(false));
        inner.add_tokens(added).map_err(malformed)?;
        Self::new(inner)
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        inner.set_encode_special_tokens(true);
        let mut specials = Vec::new();
        for (id, token) in inner.get_added_tokens_decoder() {
            if !token.special || token.content.is_empty() {
                continue;
            }
            if token.single_word {
                let what = format!("the special token {} with single_word", token.content);
                return Err(TokenizerError::Unsupported(what));
            }
            let AddedToken { content: text, lstrip, rstrip, .. } = token;
            specials.push(Special { id, text, lstrip, rstrip });
        }
        specials.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
        let mut firsts: Vec<char> = specials.iter().filter_map(|s| s.text.chars().next()).collect();
        firsts.sort_unstable();
        firsts.dedup();
        let pieces = Arc::new(Pieces::of(&inner));
        Ok(Self { inner, specials, firsts, pieces })
    }

    /// Without adding a token for the beginning of the text: chat templates write their own. Where
    /// specials are recognised, the marks that [`Tokenizer::defuse`] left are dropped. So are, always,
    /// the few bytes that a vocabulary may lack (rare control characters), as the original does.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        if specials == Specials::AsText {
            self.encode_text(text, &mut ids)?;
            return Ok(ids);
        }
        let mut rest = text;
        let mut trim_start = false;
        while let Some((at, special)) = self.find_special(rest) {
            let before = trimmed(&rest[..at], trim_start, special.lstrip);
            self.encode_text(&unmarked(before), &mut ids)?;
            ids.push(special.id);
            trim_start = special.rstrip;
            rest = &rest[at + special.text.len()..];
        }
        self.encode_text(&unmarked(trimmed(rest, trim_start, false)), &mut ids)?;
        Ok(ids)
    }

    /// Marks the text of each special token in what a customer wrote, so that it stays text when the
    /// template's output is encoded with [`Specials::Recognised`]. Otherwise a message could end its
    /// own turn and speak as the system. A mark that is in the text already becomes U+FFFD.
    pub fn defuse<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if !text.contains(MARK) && self.find_special(text).is_none() {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len() + 16);
        let mut rest = text;
        while let Some((at, _)) = self.find_special(rest) {
            // The mark goes behind the first character, and the search goes on there, so that
            // overlapping tokens are broken too.
            let first = rest[at..].chars().next().map_or(0, char::len_utf8);
            out.push_str(&rest[..at + first].replace(MARK, "\u{FFFD}"));
            out.push(MARK);
            rest = &rest[at + first..];
        }
        out.push_str(&rest.replace(MARK, "\u{FFFD}"));
        Cow::Owned(out)
    }

    /// The bytes that a token stands for, which need not be whole characters. A special token's are its
    /// name. None for an id that is no token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.bytes(id)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.0.len()
    }

    /// For one answer's tokens. Special tokens give no text.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.pieces.clone())
    }

    /// The text of a whole answer.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = self.detokenizer();
        let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// Hugging Face's `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.inner.to_string(false).map_err(|e| TokenizerError::Malformed(e.to_string()))
    }

    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The first special token in the text, the longest of those that start there.
    fn find_special(&self, text: &str) -> Option<(usize, &Special)> {
        text.match_indices(&*self.firsts).find_map(|(at, _)| {
            let here = &text[at..];
            self.specials.iter().find(|s| here.starts_with(&s.text)).map(|special| (at, special))
        })
    }
}

fn trimmed(text: &str, start: bool, end: bool) -> &str {
    let text = if start { text.trim_start() } else { text };
    if end { text.trim_end() } else { text }
}

fn unmarked(text: &str) -> Cow<'_, str> {
    if text.contains(MARK) { text.replace(MARK, "").into() } else { text.into() }
}

/// The rules by the names that llama.cpp gives them.
fn pre_tokenizer(rule: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    // GPT-2's regular expression, no space put before the text.
    let gpt2 = ByteLevel::default().add_prefix_space(false);
    match rule {
        "gpt-2" => Ok(gpt2.into()),
        // Every character of Unicode's class N stands by itself.
        "smollm" | "starcoder" | "refact" => {
            let digits = Digits::new(true);
            Ok(Sequence::new(vec![digits.into(), gpt2.into()]).into())
        }
        other => Err(TokenizerError::Unsupported(format!(
            "the pre-tokenizer {other}; use the model's Hugging Face directory, whose \
             tokenizer.json spells the rule out"
        ))),
    }
}

impl Pieces {
    fn of(inner: &tokenizers::Tokenizer) -> Self {
        let vocab = inner.get_vocab(true);
        let len = vocab.values().max().map_or(0, |max| *max as usize + 1);
        let mut pieces: Vec<Piece> = std::iter::repeat_with(Piece::default).take(len).collect();
        for (token, id) in vocab {
            pieces[id as usize].bytes = byte_level_bytes(&token).into();
        }
        for (id, token) in inner.get_added_tokens_decoder() {
            let bytes = token.content.into_bytes().into();
            pieces[id as usize] = Piece { bytes, special: token.special };
        }
        Self(pieces)
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.get(id as usize).map(|piece| &*piece.bytes)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.0.get(id as usize).is_some_and(|piece| piece.special)
    }
}

/// Undoes GPT-2's spelling of bytes as printable characters. A token that is not spelled so stands
/// for its own UTF-8.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.into())
}

/// Printable Latin-1 stands for itself; the other 68 bytes, in order, are the characters from U+0100.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_byte_has_one_spelling() {
        let bytes: HashSet<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        for c in ByteLevel::alphabet() {
            assert!(byte_of(c).is_some(), "{c:?}");
        }
        assert_eq!(byte_level_bytes("Ġhé"), b" h\xe9");
        assert_eq!(byte_level_bytes("日"), "日".as_bytes());
    }
}
