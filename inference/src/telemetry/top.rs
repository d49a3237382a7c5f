//! Labels whose values customers make, such as tenants: only the busiest get series of their own.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is decided anew who the busiest are.
const CHOOSE_EVERY: Duration = Duration::from_secs(300);

/// Keys whose weight is remembered, so that they may become listed. One more is only counted.
const MAX_CANDIDATES: usize = 4096;

/// Values by key, of at most `size` keys; all others' are together. Every [`CHOOSE_EVERY`] those with the
/// most recent weight are listed, older weight counting half each time. A series only grows while it is
/// listed and begins at zero when it is listed again; what was counted with the others stays there.
#[derive(Debug)]
pub struct Top<K, V> {
    size: usize,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    candidates: HashMap<K, Candidate<V>>,
    listed: usize,
    others: V,
    next_choice: Option<Instant>,
}

#[derive(Debug, Default)]
struct Candidate<V> {
    recent: u64,
    /// Of a listed one.
    value: Option<V>,
}

impl<K: Hash + Eq + Ord + Clone, V: Default + Clone> Top<K, V> {
    pub fn new(size: usize) -> Self {
        let state = State {
            candidates: HashMap::new(),
            listed: 0,
            others: V::default(),
            next_choice: None,
        };
        Self { size, state: Mutex::new(state) }
    }

    pub fn update(&self, key: K, weight: u64, now: Instant, update: impl FnOnce(&mut V)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.next_choice.is_none_or(|at| at <= now) {
            state.choose(self.size);
            state.next_choice = Some(now + CHOOSE_EVERY);
        }
        update(state.value(key, weight, self.size));
    }

    /// The listed in the order of their keys, and all others together.
    pub fn snapshot(&self) -> (Vec<(K, V)>, V) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates = state.candidates.iter();
        let listed = candidates.filter_map(|(key, c)| Some((key.clone(), c.value.clone()?)));
        let mut listed: Vec<(K, V)> = listed.collect();
        listed.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        (listed, state.others.clone())
    }
}

impl<K: Hash + Eq + Ord + Clone, V: Default> State<K, V> {
    /// Where the use of `key` is counted.
    fn value(&mut self, key: K, weight: u64, size: usize) -> &mut V {
        if !self.candidates.contains_key(&key) {
            if self.candidates.len() == MAX_CANDIDATES {
                return &mut self.others;
            }
            let mut new = Candidate::default();
            if self.listed < size {
                self.listed += 1;
                new.value = Some(V::default());
            }
            self.candidates.insert(key.clone(), new);
        }
        let candidate = self.candidates.get_mut(&key).expect("inserted above");
        candidate.recent = candidate.recent.saturating_add(weight);
        candidate.value.as_mut().unwrap_or(&mut self.others)
    }

    fn choose(&mut self, size: usize) {
        let mut ranked: Vec<(u64, bool, K)> = self
            .candidates
            .iter()
            .map(|(key, c)| (c.recent, c.value.is_some(), key.clone()))
            .collect();
        // Of equals, who is listed stays.
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        self.listed = ranked.len().min(size);
        for (rank, (_, _, key)) in ranked.into_iter().enumerate() {
            let candidate = self.candidates.get_mut(&key).expect("its key was taken from there");
            candidate.recent /= 2;
            if rank < size {
                candidate.value.get_or_insert_default();
            } else {
                candidate.value = None;
                if candidate.recent == 0 {
                    self.candidates.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(top: &Top<&'static str, u64>) -> Vec<(&'static str, u64)> {
        top.snapshot().0
    }

    #[test]
    fn the_busiest_have_series_of_their_own_and_nothing_is_counted_twice_or_lost() {
        let top: Top<&str, u64> = Top::new(2);
        let begin = Instant::now();
        let use_ = |key, weight, at: u32| {
            top.update(key, weight, begin + CHOOSE_EVERY * at, |value| *value += weight);
        };
        for (key, weight) in [("a", 5), ("b", 1), ("c", 100), ("a", 5)] {
            use_(key, weight, 0);
        }
        assert_eq!(listed(&top), [("a", 10), ("b", 1)], "first come, first listed");
        assert_eq!(top.snapshot().1, 100);

        use_("c", 1, 1);
        assert_eq!(listed(&top), [("a", 10), ("c", 1)], "chosen anew by recent use");
        assert_eq!(top.snapshot().1, 100, "what was counted there stays");
        use_("b", 1000, 1);
        for at in 2..12 {
            use_("d", 1, at);
        }
        assert!(listed(&top).contains(&("b", 0)), "it begins at zero: {:?}", listed(&top));
    }

    #[test]
    fn keys_beyond_what_is_remembered_are_counted_with_the_others() {
        let top: Top<usize, u64> = Top::new(1);
        let now = Instant::now();
        for key in 0..2 * MAX_CANDIDATES {
            top.update(key, 1, now, |value| *value += 1);
        }
        assert_eq!(top.snapshot(), (vec![(0, 1)], 2 * MAX_CANDIDATES as u64 - 1));
        assert_eq!(top.state.lock().unwrap().candidates.len(), MAX_CANDIDATES);
    }
}
