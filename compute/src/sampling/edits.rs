//! Changes to single logits before a draw: penalties for tokens that came before, a customer's bias,
//! and end tokens that must not come yet. All of them become one sparse list, so that a backend
//! needs to know none of the rules.

use std::collections::HashMap;

/// What a request asks for beside the draw itself. The default changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitRules {
    /// Subtracted from tokens that are in the answer so far (OpenAI).
    pub presence_penalty: f32,
    /// Subtracted as often as the token is in the answer so far (OpenAI).
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens that are in the prompt or in the
    /// answer so far (Keskar et al., "CTRL", 2019, section 4.1). Above 0; 1: none.
    pub repetition_penalty: f32,
    /// Added to a token's logit; each token at most once.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that end the answer are not drawn before it has so many.
    pub min_tokens: u32,
}

impl Default for LogitRules {
    fn default() -> Self {
        Self {
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            bias: Vec::new(),
            min_tokens: 0,
        }
    }
}

impl LogitRules {
    fn asks_for_edits(&self) -> bool {
        self.counts_tokens() || !self.bias.is_empty() || self.min_tokens > 0
    }

    fn counts_tokens(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }
}

/// One logit's change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitEdit {
    pub token: u32,
    /// Divides a positive logit, multiplies another one. Comes before `add`.
    pub divisor: f32,
    /// Negative infinity: the token is not drawn.
    pub add: f32,
}

impl LogitEdit {
    pub fn apply(&self, logit: f32) -> f32 {
        let scaled = if logit > 0.0 { logit / self.divisor } else { logit * self.divisor };
        scaled + self.add
    }
}

/// One sequence's edits, kept up to date token by token.
#[derive(Debug)]
pub struct LogitEditor {
    rules: LogitRules,
    /// Each token at most once.
    edits: Vec<LogitEdit>,
    /// Of the same length.
    reasons: Vec<Reason>,
    places: HashMap<u32, usize>,
    drawn: u32,
}

/// Why a token's logit is edited.
#[derive(Debug, Default)]
struct Reason {
    bias: f32,
    in_prompt: bool,
    in_answer: u32,
    ends: bool,
}

impl LogitEditor {
    /// `end_tokens` are those that end the sequence. None when there will never be an edit.
    pub fn new(rules: LogitRules, prompt: &[u32], end_tokens: &[u32]) -> Option<Self> {
        if !rules.asks_for_edits() {
            return None;
        }
        let mut editor = Self {
            edits: Vec::new(),
            reasons: Vec::new(),
            places: HashMap::new(),
            drawn: 0,
            rules,
        };
        for (token, bias) in std::mem::take(&mut editor.rules.bias) {
            editor.edit(token, |reason| reason.bias = bias);
        }
        if editor.rules.min_tokens > 0 {
            for token in end_tokens {
                editor.edit(*token, |reason| reason.ends = true);
            }
        }
        if editor.rules.repetition_penalty != 1.0 {
            for token in prompt {
                editor.edit(*token, |reason| reason.in_prompt = true);
            }
        }
        Some(editor)
    }

    /// The edits for the next draw.
    pub fn edits(&self) -> &[LogitEdit] {
        &self.edits
    }

    /// True while the edits are not known before the token before has been drawn.
    pub fn depends_on_last_token(&self) -> bool {
        self.rules.counts_tokens() || self.drawn < self.rules.min_tokens
    }

    /// Takes up the next token of the answer.
    pub fn drew(&mut self, token: u32) {
        self.drawn += 1;
        if self.rules.counts_tokens() {
            self.edit(token, |reason| reason.in_answer += 1);
        }
        if self.drawn == self.rules.min_tokens {
            for place in 0..self.edits.len() {
                self.update(place);
            }
        }
    }

    fn edit(&mut self, token: u32, change: impl FnOnce(&mut Reason)) {
        let place = *self.places.entry(token).or_insert_with(|| {
            self.edits.push(LogitEdit { token, divisor: 1.0, add: 0.0 });
            self.reasons.push(Reason::default());
            self.edits.len() - 1
        });
        change(&mut self.reasons[place]);
        self.update(place);
    }

    fn update(&mut self, place: usize) {
        let (reason, rules) = (&self.reasons[place], &self.rules);
        let repeated = reason.in_prompt || reason.in_answer > 0;
        let presence = if reason.in_answer > 0 { rules.presence_penalty } else { 0.0 };
        let frequency = rules.frequency_penalty * reason.in_answer as f32;
        let too_early = reason.ends && self.drawn < rules.min_tokens;
        self.edits[place].divisor = if repeated { rules.repetition_penalty } else { 1.0 };
        self.edits[place].add =
            if too_early { f32::NEG_INFINITY } else { reason.bias - presence - frequency };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const END: u32 = 7;

    fn rules() -> impl Strategy<Value = LogitRules> {
        let penalty = || prop_oneof![Just(0f32), -2f32..2.0];
        let bias = prop::collection::btree_map(0u32..10, -100f32..100.0, 0..4);
        (penalty(), penalty(), prop_oneof![Just(1f32), 0.5f32..2.0], bias, 0u32..6).prop_map(
            |(presence_penalty, frequency_penalty, repetition_penalty, bias, min_tokens)| {
                LogitRules {
                    presence_penalty,
                    frequency_penalty,
                    repetition_penalty,
                    bias: bias.into_iter().collect(),
                    min_tokens,
                }
            },
        )
    }

    /// Slow and obvious: every rule, from all the tokens.
    fn reference(
        rules: &LogitRules,
        prompt: &[u32],
        answer: &[u32],
        token: u32,
        logit: f32,
    ) -> f32 {
        if token == END && answer.len() < rules.min_tokens as usize {
            return f32::NEG_INFINITY;
        }
        let mut logit = logit;
        if prompt.contains(&token) || answer.contains(&token) {
            let penalty = rules.repetition_penalty;
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        let count = answer.iter().filter(|t| **t == token).count() as f32;
        let presence = if count > 0.0 { rules.presence_penalty } else { 0.0 };
        let bias = rules.bias.iter().find(|(t, _)| *t == token).map_or(0.0, |(_, bias)| *bias);
        logit + (bias - presence - rules.frequency_penalty * count)
    }

    proptest! {
        #[test]
        fn edits_kept_up_to_date_are_those_of_all_the_tokens(
            rules in rules(), logits in prop::collection::vec(-20f32..20.0, 10),
            prompt in prop::collection::vec(0u32..10, 1..6),
            answer in prop::collection::vec(0u32..10, 0..8),
        ) {
            let mut editor = LogitEditor::new(rules.clone(), &prompt, &[END]);
            prop_assert_eq!(editor.is_none(), rules == LogitRules::default());
            for end in 0..=answer.len() {
                let edits = editor.as_ref().map_or(&[][..], LogitEditor::edits);
                for (token, logit) in (0u32..).zip(&logits) {
                    let mut own = edits.iter().filter(|edit| edit.token == token);
                    let edited = own.next().map_or(*logit, |edit| edit.apply(*logit));
                    prop_assert!(own.next().is_none(), "one edit of a token");
                    let expected = reference(&rules, &prompt, &answer[..end], token, *logit);
                    prop_assert_eq!(edited, expected);
                }
                if let (Some(editor), Some(token)) = (&mut editor, answer.get(end)) {
                    editor.drew(*token);
                }
            }
        }
    }

    #[test]
    fn only_what_counts_tokens_waits_for_the_last_one() {
        let waits = |rules| {
            LogitEditor::new(rules, &[1], &[END]).is_some_and(|e| e.depends_on_last_token())
        };
        assert!(!waits(LogitRules { bias: vec![(3, 1.0)], ..LogitRules::default() }));
        assert!(waits(LogitRules { presence_penalty: 0.5, ..LogitRules::default() }));
        let rules = LogitRules { min_tokens: 1, ..LogitRules::default() };
        let mut editor = LogitEditor::new(rules, &[1], &[END]).expect("it edits");
        assert!(editor.depends_on_last_token());
        editor.drew(2);
        assert!(!editor.depends_on_last_token(), "nothing is left to wait for");
    }
}
