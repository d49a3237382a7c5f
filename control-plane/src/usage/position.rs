//! Where a batch stands against what has been ingested. Pure.
//!
//! A log is a chain of hashes. The stored end of the chain decides whether a batch continues the
//! log that was ingested, or one that was cloned from it and went its own way.

use lorikeet_contract::usage::{CHAIN_START, chain};

/// Everything up to `seq` of one log is in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: i64,
    pub seq: u64,
    pub chain: [u8; 32],
}

impl Cursor {
    pub const fn start(epoch: i64) -> Self {
        Self { epoch, seq: 0, chain: CHAIN_START }
    }
}

/// Consecutive records of one log, the first with number `first_seq`, counted from 1.
#[derive(Debug, Clone)]
pub struct Batch {
    pub epoch: i64,
    pub first_seq: u64,
    pub prev_hash: [u8; 32],
    pub records: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The first `known` records were ingested before; the cursor moves to `next`.
    Continues { known: usize, next: Cursor },
    /// The whole batch lies before the cursor, where no chain value is kept to compare.
    Before,
    /// Records between the cursor and the batch are missing.
    Gap,
    /// Not the log that was ingested.
    Diverged(&'static str),
}

pub fn standing(cursor: &Cursor, batch: &Batch) -> Standing {
    if batch.first_seq > cursor.seq + 1 {
        return Standing::Gap;
    }
    if batch.epoch < cursor.epoch {
        return Standing::Diverged("its epoch went back");
    }
    let known = usize::try_from(cursor.seq + 1 - batch.first_seq).unwrap_or(usize::MAX);
    if known > batch.records.len() {
        return Standing::Before;
    }
    let (before, new) = batch.records.split_at(known);
    let fold = |start: [u8; 32], records: &[Vec<u8>]| {
        records.iter().fold(start, |hash, record| chain(&hash, record))
    };
    if fold(batch.prev_hash, before) != cursor.chain {
        return Standing::Diverged("its hash chain does not continue the one ingested");
    }
    let next = Cursor {
        epoch: batch.epoch,
        seq: cursor.seq + new.len() as u64,
        chain: fold(cursor.chain, new),
    };
    Standing::Continues { known, next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(len: u8) -> Vec<Vec<u8>> {
        (0..len).map(|i| vec![i; 3]).collect()
    }

    fn cut(log: &[Vec<u8>], from: usize, to: usize) -> Batch {
        let prev_hash = log[..from].iter().fold(CHAIN_START, |hash, record| chain(&hash, record));
        let records = log[from..to].to_vec();
        Batch { epoch: 1, first_seq: from as u64 + 1, prev_hash, records }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_again_or_overlaps_each_record_is_new_exactly_once(
            cuts in proptest::collection::vec((0usize..40, 0usize..40), 1..60),
        ) {
            let log = log(40);
            let mut cursor = Cursor::start(1);
            for (a, b) in cuts {
                let (from, to) = (a.min(b), a.max(b));
                match standing(&cursor, &cut(&log, from, to)) {
                    Standing::Continues { known, next } => {
                        prop_assert_eq!(from + known, cursor.seq as usize);
                        prop_assert_eq!(next.seq as usize, to);
                        cursor = next;
                    }
                    Standing::Before => prop_assert!(to < cursor.seq as usize),
                    Standing::Gap => prop_assert!(from > cursor.seq as usize),
                    Standing::Diverged(why) => prop_assert!(false, "{}", why),
                }
            }
            let all = standing(&cursor, &cut(&log, 0, 40));
            let Standing::Continues { next, .. } = all else { panic!("{all:?}") };
            prop_assert_eq!(next.seq, 40);
        }

        #[test]
        fn a_clone_that_went_its_own_way_is_noticed_wherever_it_is_cut(
            split in 0usize..20, from in 0usize..20, to in 20usize..30,
        ) {
            let ours = log(30);
            let mut theirs = ours.clone();
            theirs[split] = b"other".to_vec();
            let Standing::Continues { next: cursor, .. } =
                standing(&Cursor::start(1), &cut(&ours, 0, 20)) else { panic!("own log") };
            let standing = standing(&cursor, &cut(&theirs, from, to));
            prop_assert!(matches!(standing, Standing::Diverged(_)), "{:?}", standing);
        }
    }

    #[test]
    fn an_epoch_that_goes_back_is_not_the_same_log() {
        let log = log(4);
        let cursor = Cursor { epoch: 2, ..Cursor::start(2) };
        assert!(matches!(standing(&cursor, &cut(&log, 0, 4)), Standing::Diverged(_)));
    }
}
