//! The slow forward pass against the kit's fp32 logits: what every backend is tested against must
//! itself be right.

use crate::model::fixture::base_model;
use crate::model::reference::{ReferenceAdapter, ReferenceModel};
use lorikeet_contract::Linear;
use lorikeet_contract::adapter::{ArtifactHeader, inspect, pack};
use lorikeet_kit::{Case, PositionLogits, Reference};
use std::fs;
use std::io::Cursor;
use std::sync::LazyLock;

/// The kit's limit for fp32 arithmetic, on logits and on natural-log probabilities.
const TOLERANCE: f64 = 0.002;

static MODEL: LazyLock<ReferenceModel> =
    LazyLock::new(|| ReferenceModel::new(&base_model().weights).expect("plain tensors"));

/// What one case's logits are worth against the reference.
struct Outcome {
    /// Each generated token is the likeliest one at its position.
    tokens_equal: bool,
    /// Largest distance of a log probability.
    logprobs: f64,
    /// Largest distance of a logit, where the case is the one with logits.
    logits: f64,
}

/// Runs prompt and expected answer in one pass, so that position `prompt - 1 + i` predicts token i.
fn run(reference: &Reference, index: usize, adapter: Option<&ReferenceAdapter>) -> Outcome {
    let case = &reference.cases[index];
    let mut tokens = case.prompt_ids.clone();
    tokens.extend(&case.tokens[..case.tokens.len() - 1]);
    let logits = MODEL.forward(&tokens, adapter).expect("a forward pass");
    let generating = &logits[case.prompt_ids.len() - 1..];
    let check = &reference.logits_check;
    let logits = if check.case == index {
        let prompt = check.prompt_positions.iter().zip(&logits);
        let generated = check.generated_positions.iter().zip(generating);
        prompt.chain(generated).map(|(expected, row)| distance(expected, row)).fold(0.0, f64::max)
    } else {
        0.0
    };
    Outcome {
        tokens_equal: generating.iter().map(|row| argmax(row)).eq(case.tokens.iter().copied()),
        logprobs: logprob_distance(case, generating),
        logits,
    }
}

fn argmax(row: &[f32]) -> u32 {
    let best = (0u32..).zip(row).max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("a vocabulary").0
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + row.iter().map(|v| (f64::from(*v) - max).exp()).sum::<f64>().ln()
}

fn distance(expected: &PositionLogits, row: &[f32]) -> f64 {
    let top = expected.ids.iter().zip(&expected.logits);
    let worst = top.map(|(id, logit)| (f64::from(row[*id as usize]) - logit).abs());
    let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
    let rest = [
        (log_sum_exp(row) - expected.logsumexp).abs(),
        (sum / row.len() as f64 - expected.mean).abs(),
    ];
    worst.chain(rest).fold(0.0, f64::max)
}

fn logprob_distance(case: &Case, generating: &[Vec<f32>]) -> f64 {
    let mut worst = 0f64;
    for (row, top) in generating.iter().zip(&case.top5) {
        let total = log_sum_exp(row);
        for (id, logprob) in top {
            worst = worst.max((f64::from(row[*id as usize]) - total - logprob).abs());
        }
    }
    worst
}

fn assert_matches(name: &str, index: usize, outcome: &Outcome) {
    assert!(outcome.tokens_equal, "{name} case {index}: other tokens");
    assert!(outcome.logprobs <= TOLERANCE, "{name} case {index}: {} off", outcome.logprobs);
    assert!(outcome.logits <= TOLERANCE, "{name} case {index}: logits {} off", outcome.logits);
}

#[test]
fn the_base_model_gives_the_reference_logits() {
    let reference = lorikeet_kit::reference(None);
    for index in 0..reference.cases.len() {
        assert_matches("base", index, &run(&reference, index, None));
    }
}

/// The kit's adapter, packed as a node gets it.
fn adapter(name: &str) -> Option<ReferenceAdapter> {
    let dir = lorikeet_kit::adapter_dir(name);
    let config = fs::read(dir.join("adapter_config.json")).expect("reads");
    // A checkout that stands alone lacks one adapter's weights.
    let Ok(weights) = fs::read(dir.join("adapter_model.safetensors")) else {
        assert!(!lorikeet_kit::is_complete(), "{name} has no weights");
        return None;
    };
    let mut weights = Cursor::new(weights);
    let inspected = inspect(&config, &mut weights, &base_model().weights.config.spec)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut file = Vec::new();
    pack(&inspected.plan, inspected.digest, &mut weights, &mut file).expect("packs");
    let header = ArtifactHeader::parse(&file, file.len() as u64).expect("a packed adapter");
    Some(ReferenceAdapter::from_artifact(&header, &file).expect("plain tensors"))
}

#[test]
fn every_required_adapter_gives_its_reference_logits() {
    for entry in lorikeet_kit::index().adapters.iter().filter(|entry| entry.required) {
        let name = entry.adapter.as_str();
        let Some(adapter) = adapter(name) else { continue };
        let reference = lorikeet_kit::reference(Some(name));
        let index = reference.logits_check.case;
        assert_matches(name, index, &run(&reference, index, Some(&adapter)));
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
        assert!(outcome.logits > 1000.0 * TOLERANCE, "{name}: {}", outcome.logits);
    }
}
