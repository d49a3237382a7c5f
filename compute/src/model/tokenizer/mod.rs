//! Text to tokens and back, through the `tokenizers` crate: byte-level BPE, and SentencePiece's BPE.

mod pieces;
mod vocabulary;

use super::ModelError;
use super::detokenizer::Detokenizer;
pub(super) use pieces::Pieces;
use pieces::Spelling;
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use tokenizers::AddedToken;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
pub(super) use vocabulary::{BytePairs, SentencePieces};

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

impl TokenizerError {
    pub(super) fn in_file(self, path: &Path) -> ModelError {
        match self {
            TokenizerError::Unsupported(feature) => ModelError::unsupported(path, feature),
            other => ModelError::malformed(path, other),
        }
    }
}

/// A Unicode noncharacter, never part of a text that is meant for others (Unicode, section 23.7). It marks
/// places where a customer's text must not be read as a special token; see [`Tokenizer::defuse`].
const MARK: char = '\u{FDD0}';

/// Encodes as Hugging Face does. Special tokens are found here and not by the inner tokenizer, so that
/// it depends on the text's origin whether they are recognised.
pub struct Tokenizer {
    /// Takes special tokens for text.
    inner: tokenizers::Tokenizer,
    /// For text behind a special token, where that is cut in another way than at the beginning.
    continued: Option<tokenizers::Tokenizer>,
    /// Longest first.
    specials: Vec<Special>,
    /// First characters of the special tokens.
    firsts: Vec<char>,
    /// What a text begins with that no template has written.
    beginning: Option<u32>,
    pieces: Arc<Pieces>,
}

struct Special {
    id: u32,
    text: String,
    /// The token takes the whitespace before or behind it along.
    lstrip: bool,
    rstrip: bool,
}

impl Tokenizer {
    /// From a Hugging Face `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| TokenizerError::Malformed(e.to_string()))?;
        Self::new(inner)
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let spelling = Spelling::of(inner.get_decoder())?;
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
        let pieces = Arc::new(Pieces::of(&inner, spelling));
        let continued = continued(&inner)?;
        let beginning = beginning(&inner)?;
        Ok(Self { inner, continued, specials, firsts, beginning, pieces })
    }

    /// Overrules what the tokenizer's own file says a text begins with.
    pub(super) fn set_beginning(&mut self, beginning: Option<u32>) {
        self.beginning = beginning;
    }

    /// The tokens with the model's beginning of a text before them, if it has one and they do not begin
    /// with it.
    pub fn begin(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(beginning) = self.beginning
            && ids.first() != Some(&beginning)
        {
            ids.insert(0, beginning);
        }
        ids
    }

    /// Without adding a token for the [beginning](Self::begin) of the text: chat templates write their own. Where
    /// specials are recognised, the marks that [`Tokenizer::defuse`] left are dropped. So are, always,
    /// the few bytes that a vocabulary may lack (rare control characters), as the original does.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        if specials == Specials::AsText {
            encode_text(&self.inner, text, &mut ids)?;
            return Ok(ids);
        }
        let mut inner = &self.inner;
        let mut rest = text;
        let mut trim_start = false;
        while let Some((at, special)) = self.find_special(rest) {
            let before = trimmed(&rest[..at], trim_start, special.lstrip);
            encode_text(inner, &unmarked(before), &mut ids)?;
            ids.push(special.id);
            inner = self.continued.as_ref().unwrap_or(&self.inner);
            trim_start = special.rstrip;
            rest = &rest[at + special.text.len()..];
        }
        encode_text(inner, &unmarked(trimmed(rest, trim_start, false)), &mut ids)?;
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

    /// The special token of this name.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials.iter().find(|special| special.text == name).map(|special| special.id)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
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

    /// The first special token in the text, the longest of those that start there.
    fn find_special(&self, text: &str) -> Option<(usize, &Special)> {
        text.match_indices(&*self.firsts).find_map(|(at, _)| {
            let here = &text[at..];
            self.specials.iter().find(|s| here.starts_with(&s.text)).map(|special| (at, special))
        })
    }
}

fn encode_text(
    inner: &tokenizers::Tokenizer,
    text: &str,
    ids: &mut Vec<u32>,
) -> Result<(), TokenizerError> {
    if text.is_empty() {
        return Ok(());
    }
    let encoding =
        inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
    ids.extend_from_slice(encoding.get_ids());
    Ok(())
}

/// The token that Transformers puts before a text.
fn beginning(inner: &tokenizers::Tokenizer) -> Result<Option<u32>, TokenizerError> {
    let encoding =
        inner.encode_fast("", true).map_err(|e| TokenizerError::Encode(e.to_string()))?;
    Ok(encoding.get_ids().first().copied())
}

/// Metaspace's scheme `first` puts a space before the beginning of a text, and not before what follows
/// a special token: the inner tokenizer, which sees one piece at a time, cannot know.
fn continued(
    inner: &tokenizers::Tokenizer,
) -> Result<Option<tokenizers::Tokenizer>, TokenizerError> {
    let is_first = |step: &PreTokenizerWrapper| {
        let PreTokenizerWrapper::Metaspace(metaspace) = step else { return false };
        metaspace.get_prepend_scheme() == PrependScheme::First
    };
    match inner.get_pre_tokenizer() {
        Some(step @ PreTokenizerWrapper::Metaspace(metaspace)) if is_first(step) => {
            let mut metaspace = metaspace.clone();
            metaspace.set_prepend_scheme(PrependScheme::Never);
            let mut continued = inner.clone();
            continued.with_pre_tokenizer(Some(metaspace));
            Ok(Some(continued))
        }
        Some(PreTokenizerWrapper::Sequence(steps)) if steps.as_ref().iter().any(is_first) => {
            let what = "Metaspace with prepend_scheme first among other pre-tokenizers";
            Err(TokenizerError::Unsupported(what.into()))
        }
        _ => Ok(None),
    }
}

fn trimmed(text: &str, start: bool, end: bool) -> &str {
    let text = if start { text.trim_start() } else { text };
    if end { text.trim_end() } else { text }
}

fn unmarked(text: &str) -> Cow<'_, str> {
    if text.contains(MARK) { text.replace(MARK, "").into() } else { text.into() }
}
