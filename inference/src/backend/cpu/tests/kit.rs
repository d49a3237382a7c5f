//! The real model and the trained adapters against the kit's references, within its limits for
//! bf16 arithmetic: logits as well as tokens.

use super::harness::{Driver, Running, kit_adapter};
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::{AdapterSlot, Input, LogitsWanted, SequenceOutput};
use crate::model::fixture::base_model;
use lorikeet_kit::{Case, PositionLogits, Reference};

/// The kit's limits for bf16, see "Tolerances observed" in its README.
const LOGIT_MAX: f64 = 1.5;
const LOGIT_RMS: f64 = 0.4;
const PROBABILITY: f64 = 0.1;
/// Below this margin a case's tokens are not compared.
const MARGIN: f64 = 0.5;

/// A tenant of the kit, or the base model.
struct Tenant {
    name: String,
    slot: Option<AdapterSlot>,
    reference: Reference,
}

fn config() -> CpuConfig {
    CpuConfig { kv_tokens: 8192, ..CpuConfig::default() }
}

/// Every required adapter that is at hand, and the base.
fn tenants(driver: &mut Driver<impl crate::backend::Backend>) -> Vec<Tenant> {
    let spec = &base_model().weights.config.spec;
    let reference = lorikeet_kit::reference(None);
    let mut tenants = vec![Tenant { name: "base".into(), slot: None, reference }];
    for (index, entry) in (0..).zip(lorikeet_kit::index().adapters.iter().filter(|a| a.required)) {
        let name = entry.adapter.clone();
        let weights = lorikeet_kit::adapter_dir(&name).join("adapter_model.safetensors");
        if !lorikeet_kit::is_complete() && !weights.is_file() {
            continue;
        }
        let slot = Some(driver.upload(index, kit_adapter(&name, spec)));
        let reference = lorikeet_kit::reference(Some(&name));
        tenants.push(Tenant { name, slot, reference });
    }
    tenants
}

/// Feeds prompts and expected answers; what comes out must be the reference's at every position.
#[test]
fn teacher_forced_logits_match_alone_and_in_one_batch_over_all_adapters() {
    let backend = CpuBackend::new(&base_model().weights, config()).unwrap();
    let mut driver = Driver::new(backend);
    let tenants = tenants(&mut driver);
    let mut alone = Vec::new();
    for tenant in &tenants {
        for index in 0..tenant.reference.cases.len() {
            driver.reuse_blocks();
            let outputs = force(&mut driver, &[(tenant, index)]);
            check(tenant, index, &outputs[0].logits);
            if tenant.reference.logits_check.case == index {
                alone.push(outputs[0].logits.clone());
            }
        }
    }
    driver.reuse_blocks();
    let cases: Vec<_> = tenants.iter().map(|t| (t, t.reference.logits_check.case)).collect();
    let together = force(&mut driver, &cases);
    for ((tenant, together), alone) in tenants.iter().zip(together).zip(alone) {
        assert!(together.logits == alone, "{}: other bits beside others", tenant.name);
    }
}

fn force(
    driver: &mut Driver<impl crate::backend::Backend>,
    cases: &[(&Tenant, usize)],
) -> Vec<SequenceOutput> {
    let mut running: Vec<(Running, Vec<u32>)> = Vec::new();
    for (tenant, index) in cases {
        let case = &tenant.reference.cases[*index];
        let mut tokens = case.prompt_ids.clone();
        tokens.extend(&case.tokens[..case.tokens.len() - 1]);
        let mut sequence = driver.start(tenant.slot, tokens.len());
        sequence.logits = LogitsWanted::All;
        running.push((sequence, tokens));
    }
    let mut batch: Vec<(&mut Running, Input)> =
        running.iter_mut().map(|(s, tokens)| (s, Input::Tokens(tokens.clone()))).collect();
    driver.step(&mut batch)
}

fn check(tenant: &Tenant, index: usize, logits: &[Vec<f32>]) {
    let case = &tenant.reference.cases[index];
    let name = format!("{} case {index}", tenant.name);
    let generating = &logits[case.prompt_ids.len() - 1..];
    check_probabilities(&name, case, generating);
    let reference = &tenant.reference.logits_check;
    if reference.case == index {
        check_logits(&name, &reference.prompt_positions, logits);
        check_logits(&name, &reference.generated_positions, generating);
    }
}

fn check_probabilities(name: &str, case: &Case, generating: &[Vec<f32>]) {
    for ((row, top), &token) in generating.iter().zip(&case.top5).zip(&case.tokens) {
        if case.min_margin >= MARGIN {
            assert_eq!(crate::sampling::greedy(row), token, "{name}");
        }
        let (_, all) = crate::sampling::log_probs(row, token, 50);
        for (id, expected) in top {
            let got = all.iter().find(|(other, _)| other == id).map_or(-20.0, |(_, l)| *l);
            let distance = (f64::from(got).exp() - expected.exp()).abs();
            assert!(distance < PROBABILITY, "{name}: token {id}'s probability is {distance} off");
        }
    }
}

fn check_logits(name: &str, positions: &[PositionLogits], logits: &[Vec<f32>]) {
    let (mut squares, mut count) = (0.0, 0);
    for (expected, row) in positions.iter().zip(logits) {
        for (id, logit) in expected.ids.iter().zip(&expected.logits) {
            let distance = (f64::from(row[*id as usize]) - logit).abs();
            assert!(distance < LOGIT_MAX, "{name}: token {id}'s logit is {distance} off");
            squares += distance * distance;
            count += 1;
        }
    }
    let rms = (squares / f64::from(count)).sqrt();
    println!("{name}: logits r.m.s. {rms:.3}");
    assert!(rms < LOGIT_RMS, "{name}: logits are {rms} off in the mean");
}

#[test]
fn all_adapters_and_the_base_decode_their_references_in_one_mixed_batch() {
    let backend = CpuBackend::new(&base_model().weights, config()).unwrap();
    let mut driver = Driver::new(backend);
    let tenants = tenants(&mut driver);
    for index in 0..tenants[0].reference.cases.len() {
        driver.reuse_blocks();
        let cases: Vec<&Case> = tenants.iter().map(|t| &t.reference.cases[index]).collect();
        let answers = generate(&mut driver, &tenants, &cases);
        for ((tenant, case), answer) in tenants.iter().zip(cases).zip(answers) {
            if case.min_margin >= MARGIN {
                assert_eq!(answer, case.tokens, "{} case {index}", tenant.name);
            }
        }
    }
}

/// Greedy answers, every tenant's case in the same passes.
fn generate(
    driver: &mut Driver<impl crate::backend::Backend>,
    tenants: &[Tenant],
    cases: &[&Case],
) -> Vec<Vec<u32>> {
    let mut running: Vec<Running> = tenants
        .iter()
        .zip(cases)
        .map(|(t, case)| driver.start(t.slot, case.prompt_ids.len() + 32))
        .collect();
    let mut inputs: Vec<Input> =
        cases.iter().map(|case| Input::Tokens(case.prompt_ids.clone())).collect();
    let mut answers = vec![Vec::new(); cases.len()];
    for _ in 0..32 {
        let mut batch: Vec<(&mut Running, Input)> =
            running.iter_mut().zip(inputs.iter().cloned()).collect();
        let outputs = driver.step(&mut batch);
        for (answer, output) in answers.iter_mut().zip(outputs) {
            answer.push(output.sampled.unwrap().token);
        }
        inputs = vec![Input::PreviousSample; cases.len()];
    }
    for (answer, case) in answers.iter_mut().zip(cases) {
        answer.truncate(case.tokens.len());
    }
    answers
}
