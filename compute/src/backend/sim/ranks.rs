//! The simulated distribution: the tokens in a ring from the likeliest on, each of half the
//! probability of the one before it.

use crate::sampling::{LogitEdit, TokenMask};
use std::f32::consts::LN_2;

/// Ranks from here on are equally unlikely, so that a large bias can raise any token.
const TAIL: u64 = 64;

pub(super) struct Ranks {
    /// The likeliest token.
    pub first: u64,
    pub vocab: u64,
}

impl Ranks {
    /// Of one draw: `random` and the allowed tokens settle the likeliest.
    pub fn new(random: u64, vocab: u64, allowed: Option<&TokenMask>) -> Self {
        let first = allowed.and_then(|allowed| drawn(random, allowed)).map(u64::from);
        Self { first: first.filter(|first| *first < vocab).unwrap_or(random % vocab), vocab }
    }

    pub fn token(&self, rank: u64) -> u32 {
        ((self.first + rank) % self.vocab) as u32
    }

    pub fn rank(&self, token: u32) -> u64 {
        (u64::from(token) + self.vocab - self.first) % self.vocab
    }

    pub fn logprob(rank: u64) -> f32 {
        -((rank.min(TAIL) + 1) as f32) * LN_2
    }

    /// After the edits, of the allowed tokens; of equally likely ones that of the lowest rank. Edits of
    /// tokens that the vocabulary does not have are left out.
    pub fn likeliest(&self, edits: &[LogitEdit], allowed: Option<&TokenMask>) -> u32 {
        let allows = |token| allowed.is_none_or(|allowed| allowed.allows(token));
        let edited = edits.iter().filter(|edit| u64::from(edit.token) < self.vocab);
        let edited = edited.filter(|edit| allows(edit.token));
        let edited = edited.map(|edit| {
            let rank = self.rank(edit.token);
            (rank, edit.apply(Self::logprob(rank)))
        });
        // Of the tokens without an edit only the first can be the likeliest.
        let free = (0..self.vocab).find(|rank| {
            let token = self.token(*rank);
            allows(token) && edits.iter().all(|edit| edit.token != token)
        });
        let all = edited.chain(free.map(|rank| (rank, Self::logprob(rank))));
        let best = all.min_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        self.token(best.map_or(0, |(rank, _)| rank))
    }
}

/// Every other draw takes any of the tokens alike, those between one of the lowest: of most vocabularies
/// these are end tokens and single characters, quotes and brackets among them, so that whatever a grammar
/// leaves without an end comes to one.
fn drawn(random: u64, allowed: &TokenMask) -> Option<u32> {
    let count = allowed.len();
    let (is_any, random) = (random & 1 == 0, random >> 1);
    let lowest = u64::from(random.trailing_zeros());
    let nth = if is_any { random.checked_rem(count)? } else { lowest.min(count.checked_sub(1)?) };
    allowed.nth(nth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_penalties_and_biases_move_the_draw() {
        let ranks = Ranks { first: 8, vocab: 10 };
        let edit = |token, add| LogitEdit { token, divisor: 1.0, add };
        assert_eq!(ranks.likeliest(&[], None), 8);
        assert_eq!(ranks.likeliest(&[edit(8, f32::NEG_INFINITY), edit(9, -2.0)], None), 0);
        assert_eq!(ranks.likeliest(&[edit(5, 100.0)], None), 5);
        assert_eq!(ranks.likeliest(&[LogitEdit { token: 8, divisor: 3.0, add: 0.0 }], None), 9);
        assert_eq!(ranks.likeliest(&[edit(10, 100.0)], None), 8, "no such token");
        let mask = TokenMask::new([0b110]);
        assert_eq!(ranks.likeliest(&[], Some(&mask)), 1);
        assert_eq!(ranks.likeliest(&[edit(2, 50.0), edit(5, 100.0)], Some(&mask)), 2);
    }

    #[test]
    fn each_allowed_token_is_drawn_and_the_lowest_most_often() {
        let mask = TokenMask::new([0, 0b1011_0000, 1 << 31]);
        let mut counts = std::collections::BTreeMap::new();
        for draw in 0..4000 {
            let ranks = Ranks::new(super::super::shadow::mix(draw, 0), 96, Some(&mask));
            *counts.entry(ranks.likeliest(&[], Some(&mask))).or_insert(0) += 1;
        }
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [36, 37, 39, 95]);
        assert!(counts.values().all(|count| *count > 400), "{counts:?}");
        assert!(counts[&36] > 1000, "{counts:?}");
        let none = Ranks::new(7, 5, Some(&TokenMask::new([0])));
        assert_eq!(none.first, 2, "an empty set settles nothing");
    }
}
