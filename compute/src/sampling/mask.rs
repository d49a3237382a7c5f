//! The tokens that may be drawn at all.

/// A set of tokens, one bit each, lowest first. Tokens beyond its end are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    words: Box<[u32]>,
}

impl TokenMask {
    pub fn new(words: impl Into<Box<[u32]>>) -> Self {
        Self { words: words.into() }
    }

    pub fn allows(&self, token: u32) -> bool {
        let word = self.words.get(token as usize / 32);
        word.is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Makes every other token impossible.
    pub fn apply(&self, logits: &mut [f32]) {
        let (masked, beyond) = logits.split_at_mut(logits.len().min(self.words.len() * 32));
        beyond.fill(f32::NEG_INFINITY);
        for (logits, word) in masked.chunks_mut(32).zip(&self.words) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_set_becomes_impossible_also_beyond_its_end() {
        let mask = TokenMask::new([0b101, 1 << 31]);
        let mut logits = [1.0; 70];
        mask.apply(&mut logits);
        for (token, logit) in (0..).zip(logits) {
            let allowed = [0, 2, 63].contains(&token);
            assert_eq!(mask.allows(token), allowed);
            assert_eq!(logit.is_finite(), allowed, "token {token}");
        }
        assert!(!mask.allows(u32::MAX));
    }
}
