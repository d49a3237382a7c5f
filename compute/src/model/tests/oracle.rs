//! The slow forward pass against the kit's fp32 logits: what every backend is tested against must
//! itself be right.

use crate::model::fixture::{base_model, packed_adapter};
use crate::model::reference::{ReferenceAdapter, ReferenceModel};
use lorikeet_contract::Linear;
use lorikeet_kit::Reference;
use lorikeet_kit::compare::{FP32_TOLERANCE, argmax};
use std::sync::LazyLock;

static MODEL: LazyLock<ReferenceModel> =
    LazyLock::new(|| ReferenceModel::new(&base_model().weights).expect("plain tensors"));

/// How one case's logits compare with the reference.
struct Outcome {
    /// Each generated token is the likeliest one at its position.
    tokens_equal: bool,
    logprob_distance: f64,
    /// 0 where the case is not the one with logits.
    logit_distance: f64,
}

fn run(reference: &Reference, index: usize, adapter: Option<&ReferenceAdapter>) -> Outcome {
    let case = &reference.cases[index];
    let logits = MODEL.forward(&case.teacher_forced(), adapter).expect("a forward pass");
    let generating = &logits[case.prompt_ids.len() - 1..];
    let check = &reference.logits_check;
    let prompt = check.prompt_positions.iter().zip(&logits);
    let generated = check.generated_positions.iter().zip(generating);
    let distances = prompt.chain(generated).map(|(expected, row)| expected.distance(row));
    let logit_distance = if check.case == index { distances.fold(0.0, f64::max) } else { 0.0 };
    Outcome {
        tokens_equal: generating.iter().map(|row| argmax(row)).eq(case.tokens.iter().copied()),
        logprob_distance: case.logprob_distance(generating),
        logit_distance,
    }
}

fn assert_matches(name: &str, outcome: &Outcome) {
    let Outcome { tokens_equal, logprob_distance, logit_distance } = outcome;
    assert!(tokens_equal, "{name}: other tokens");
    assert!(
        *logprob_distance <= FP32_TOLERANCE,
        "{name}: log probabilities {logprob_distance} off"
    );
    assert!(*logit_distance <= FP32_TOLERANCE, "{name}: logits {logit_distance} off");
}

fn adapter(name: &str) -> Option<ReferenceAdapter> {
    let (header, file) = packed_adapter(name)?;
    Some(ReferenceAdapter::from_artifact(&header, &file).expect("plain tensors"))
}

#[test]
fn the_base_model_gives_the_reference_logits() {
    let reference = lorikeet_kit::reference(None);
    for (index, case) in reference.cases.iter().enumerate() {
        assert_matches(&case.id, &run(&reference, index, None));
    }
}

#[test]
fn every_required_adapter_gives_its_reference_logits() {
    for entry in lorikeet_kit::index().adapters.iter().filter(|entry| entry.required) {
        let name = entry.adapter.as_str();
        let Some(adapter) = adapter(name) else { continue };
        let reference = lorikeet_kit::reference(Some(name));
        let index = reference.logits_check.case;
        assert_matches(name, &run(&reference, index, Some(&adapter)));
    }
}

/// The kit's point: with wide margins a wrong adapter still says the same, so only logits can tell.
#[test]
fn planted_mistakes_leave_the_tokens_equal_and_the_logits_far_off() {
    type Mistake = fn(&mut ReferenceAdapter);
    let mistakes: [(&str, Mistake); 3] = [
        ("esperanto", |a| a.modules.values_mut().for_each(|m| m.magnitude = None)),
        ("pirate", |a| a.modules.values_mut().for_each(|m| m.scale /= 2.0)),
        ("pirate", |a| a.modules.retain(|(_, linear), _| *linear != Linear::KProj)),
    ];
    for (name, plant) in mistakes {
        let reference = lorikeet_kit::reference(Some(name));
        let mut adapter = adapter(name).expect("part of every checkout");
        plant(&mut adapter);
        let outcome = run(&reference, reference.logits_check.case, Some(&adapter));
        assert!(outcome.tokens_equal, "{name}");
        assert!(
            outcome.logit_distance > 1000.0 * FP32_TOLERANCE,
            "{name}: {}",
            outcome.logit_distance
        );
    }
}
