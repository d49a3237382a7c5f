//! What each token of a vocabulary stands for.

use super::TokenizerError;
use serde_json::{Value, json};
use tokenizers::DecoderWrapper;

/// How a vocabulary spells text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's: each byte is a printable character.
    ByteLevel,
    /// SentencePiece's: a space is `▁`, a byte without a token of its own is `<0x0A>`.
    SentencePiece,
}

/// Bytes by token.
pub(in crate::model) struct Pieces(Vec<Piece>);

#[derive(Default)]
struct Piece {
    bytes: Box<[u8]>,
    special: bool,
}

impl Spelling {
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, TokenizerError> {
        let refused = |what: String| {
            let served = "byte-level BPE and SentencePiece's BPE with byte fallback are served";
            Err(TokenizerError::Unsupported(format!("{what} ({served})")))
        };
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Ok(Spelling::ByteLevel),
            Some(DecoderWrapper::Sequence(sequence)) => {
                let steps = sequence.get_decoders();
                let known = steps.iter().all(is_sentence_pieces);
                let falls_back = |step| matches!(step, &DecoderWrapper::ByteFallback(_));
                match known && steps.iter().any(falls_back) {
                    true => Ok(Spelling::SentencePiece),
                    false => refused("a decoder of other steps than SentencePiece's".into()),
                }
            }
            Some(other) => refused(format!("the decoder {}", name(other))),
            None => refused("a tokenizer without a decoder".into()),
        }
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Spelling::ByteLevel => byte_level_bytes(token),
            Spelling::SentencePiece => match fallback_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// A step of Llama 2's and Mistral's decoder. The last, which takes the first space off a text, is not
/// for an answer: what is put behind a prompt must keep it.
fn is_sentence_pieces(step: &DecoderWrapper) -> bool {
    match step {
        DecoderWrapper::ByteFallback(_) | DecoderWrapper::Fuse(_) => true,
        DecoderWrapper::Strip(strip) => strip.content == ' ' && strip.stop == 0,
        DecoderWrapper::Replace(replace) => {
            let spaces = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
            serde_json::to_value(replace).is_ok_and(|value| value == spaces)
        }
        _ => false,
    }
}

fn name(decoder: &DecoderWrapper) -> String {
    let kind = serde_json::to_value(decoder).ok();
    let kind = kind.as_ref().and_then(|value| value.get("type")).and_then(Value::as_str);
    kind.unwrap_or("of an unknown kind").to_owned()
}

impl Pieces {
    pub(super) fn of(inner: &tokenizers::Tokenizer, spelling: Spelling) -> Self {
        let vocab = inner.get_vocab(true);
        let len = vocab.values().max().map_or(0, |max| *max as usize + 1);
        let mut pieces: Vec<Piece> = std::iter::repeat_with(Piece::default).take(len).collect();
        for (token, id) in vocab {
            pieces[id as usize].bytes = spelling.bytes(&token).into();
        }
        for (id, token) in inner.get_added_tokens_decoder() {
            let bytes = token.content.into_bytes().into();
            pieces[id as usize] = Piece { bytes, special: token.special };
        }
        Self(pieces)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::model) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.get(id as usize).map(|piece| &*piece.bytes)
    }

    pub(in crate::model) fn is_special(&self, id: u32) -> bool {
        self.0.get(id as usize).is_some_and(|piece| piece.special)
    }
}

/// `<0x0A>`
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
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
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

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
