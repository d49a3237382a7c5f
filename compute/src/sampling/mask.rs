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

    /// Lowest tokens first; may end before the vocabulary does.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    pub fn allows(&self, token: u32) -> bool {
        let word = self.words.get(token as usize / 32);
        word.is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The token that so many lower ones come before. None: it has no more than `n`.
    pub fn nth(&self, mut n: u64) -> Option<u32> {
        for (first, word) in (0..).step_by(32).zip(&self.words) {
            let count = u64::from(word.count_ones());
            if n < count {
                let at = (0..32).filter(|bit| word >> bit & 1 == 1).nth(n as usize)?;
                return Some(first + at);
            }
            n -= count;
        }
        None
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
        assert_eq!((mask.len(), mask.is_empty()), (3, false));
        assert_eq!([0, 1, 2, 3].map(|n| mask.nth(n)), [Some(0), Some(2), Some(63), None]);
    }
}
