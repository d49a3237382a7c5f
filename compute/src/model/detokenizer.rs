use super::tokenizer::Pieces;
use std::sync::Arc;

/// Turns tokens into text as they arrive. A token may end inside a character: its bytes wait for the
/// rest, so no piece ever holds a broken character.
///
/// The pieces of an answer, [`Detokenizer::finish`] included, concatenate to the text of all its bytes
/// with each maximal invalid part replaced by U+FFFD.
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    /// Special tokens that give their names.
    shown: Vec<u32>,
    /// The beginning of a character; at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(super) fn new(pieces: Arc<Pieces>) -> Self {
        Self { pieces, shown: Vec::new(), pending: Vec::new() }
    }

    /// These special tokens give their names as text.
    pub fn showing(self, shown: Vec<u32>) -> Self {
        Self { shown, ..self }
    }

    /// The text that this token completes, often empty inside a character. Special tokens that are
    /// not [shown](Self::showing) and ids that are no token give none.
    pub fn push(&mut self, token: u32) -> String {
        if self.pieces.is_special(token) && !self.shown.contains(&token) {
            return String::new();
        }
        let pieces = self.pieces.clone();
        self.push_bytes(pieces.bytes(token).unwrap_or_default())
    }

    /// The end of the answer: a character left incomplete becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut complete = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            complete += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty()
                || may_continue(invalid) && complete + invalid.len() == self.pending.len()
            {
                continue;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            complete += invalid.len();
        }
        self.pending.drain(..complete);
        text
    }
}

/// True if more bytes can still make a character of these.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
