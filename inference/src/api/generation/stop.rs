//! Stop strings: where an answer ends before the model does.

/// Lets text through up to the first stop string, wherever the pieces are cut: what may be the
/// beginning of one waits for the next piece. The first is the one that ends first, and of those that
/// end together the longest.
#[derive(Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    pub text: String,
    pub stopped: bool,
}

impl StopStrings {
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    pub fn push(&mut self, text: &str) -> Passed {
        let mut checked = self.held.len();
        self.held.push_str(text);
        while let Some(c) = self.held[checked..].chars().next() {
            checked += c.len_utf8();
            if let Some(start) = self.stop_before(checked) {
                self.held.truncate(start);
                return Passed { text: std::mem::take(&mut self.held), stopped: true };
            }
        }
        let open = self.open_from();
        let rest = self.held.split_off(open);
        Passed { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The end of the answer: what waited is no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the longest stop string that ends at `end` begins.
    fn stop_before(&self, end: usize) -> Option<usize> {
        let ended = &self.held[..end];
        let ends = self.stops.iter().filter(|stop| ended.ends_with(stop.as_str()));
        ends.map(|stop| end - stop.len()).min()
    }

    /// Where the longest suffix begins that some stop string may go on from.
    fn open_from(&self) -> usize {
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let boundaries = self.held.char_indices().map(|(at, _)| at);
        boundaries.into_iter().find(begins).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[String], pieces: &[&str]) -> (String, bool) {
        let mut passing = StopStrings::new(stops.to_vec());
        let mut out = String::new();
        for piece in pieces {
            let passed = passing.push(piece);
            out += &passed.text;
            if passed.stopped {
                return (out, true);
            }
        }
        out += &passing.finish();
        (out, false)
    }

    /// Slow and obvious: the whole text, looked at end by end.
    fn reference(stops: &[String], text: &str) -> (String, bool) {
        for (at, c) in text.char_indices() {
            let head = &text[..at + c.len_utf8()];
            let starts = stops.iter().filter_map(|stop| head.strip_suffix(stop.as_str()));
            if let Some(kept) = starts.min_by_key(|kept| kept.len()) {
                return (kept.to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #[test]
        fn any_cut_of_the_text_ends_at_the_same_stop_string(
            text in "[abé]{0,24}", stops in proptest::collection::vec("[abé]{1,4}", 0..4),
            cuts in proptest::collection::vec(0usize..25, 0..6),
        ) {
            let mut cuts: Vec<usize> =
                cuts.into_iter().filter(|cut| text.is_char_boundary(*cut)).chain([0]).collect();
            cuts.sort_unstable();
            let ends = cuts.iter().skip(1).copied().chain([text.len()]);
            let pieces: Vec<&str> = cuts.iter().zip(ends).map(|(from, to)| &text[*from..to]).collect();
            prop_assert_eq!(run(&stops, &pieces), reference(&stops, &text));
        }
    }

    #[test]
    fn text_that_cannot_become_a_stop_string_does_not_wait() {
        let mut passing = StopStrings::new(vec!["\n\nUser:".into()]);
        assert_eq!(passing.push("Hello"), Passed { text: "Hello".into(), stopped: false });
        assert_eq!(passing.push(".\n"), Passed { text: ".".into(), stopped: false });
        assert_eq!(passing.push("\nUs"), Passed { text: String::new(), stopped: false });
        assert_eq!(passing.push("e this"), Passed { text: "\n\nUse this".into(), stopped: false });
    }
}
