//! Money in integer nano-dollars. Prices come in steps of $0.001 per million tokens, which is one
//! nano-dollar a token, so rating is exact and no float is ever near an amount.

use serde::{Deserialize, Serialize};

/// An amount in 10^-9 dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct NanoDollars(pub i64);

/// A price in nano-dollars a token; 1 is $0.001 per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPrice(pub i64);

impl TokenPrice {
    /// Exact, or `None` past the range of the type.
    pub fn of(self, tokens: u64) -> Option<NanoDollars> {
        i64::try_from(tokens).ok()?.checked_mul(self.0).map(NanoDollars)
    }
}

impl NanoDollars {
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_tokens_at_one_step_cost_a_tenth_of_a_cent() {
        assert_eq!(TokenPrice(1).of(1_000_000), Some(NanoDollars(1_000_000)));
        assert_eq!(TokenPrice(i64::MAX).of(2), None);
    }
}
