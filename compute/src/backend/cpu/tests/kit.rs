//! The real model and the trained adapters against the kit's references: logits as well as tokens.

use super::harness::{Driver, Running, kit_adapter};
use crate::backend::cpu::element::Element;
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::{AdapterSlot, HostAdapter, Input, LogitsWanted, SequenceOutput};
use crate::model::fixture::base_model;
use crate::sampling::{greedy, log_probs};
use half::bf16;
use lorikeet_contract::Linear;
use lorikeet_kit::{Case, PositionLogits, Reference};

/// Below this margin a case's tokens are not compared in bf16.
const MARGIN: f64 = 0.5;
/// Log probabilities that are read; the reference lists five.
const TOP: u8 = 50;

/// How far logits may be off, see "Tolerances observed" in the kit's README.
struct Limits {
    logit: f64,
    logit_rms: f64,
    probability: f64,
}

const BF16: Limits = Limits { logit: 1.5, logit_rms: 0.4, probability: 0.1 };
const F32: Limits = Limits { logit: 0.002, logit_rms: 0.002, probability: 0.002 };

/// How far they are.
#[derive(Debug, Default)]
struct Distance {
    other_tokens: usize,
    probability: f64,
    logit: f64,
    squares: f64,
    logits: u32,
}

impl Distance {
    fn logits_are_within(&self, limits: &Limits) -> bool {
        self.logit < limits.logit
            && (self.squares / f64::from(self.logits.max(1))).sqrt() < limits.logit_rms
    }

    fn assert_within(&self, limits: &Limits, name: &str) {
        assert_eq!(self.other_tokens, 0, "{name}: {self:?}");
        assert!(self.probability < limits.probability, "{name}: {self:?}");
        assert!(self.logits_are_within(limits), "{name}: {self:?}");
    }
}

/// A tenant of the kit, or the base model.
struct Tenant {
    name: String,
    slot: Option<AdapterSlot>,
    reference: Reference,
}

fn config() -> CpuConfig {
    CpuConfig { kv_tokens: 4096, max_rows: 1024, ..CpuConfig::default() }
}

/// Every required adapter that is at hand, and the base.
fn tenants<T: Element>(driver: &mut Driver<CpuBackend<T>>) -> Vec<Tenant> {
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

/// Feeds prompts and expected answers in one pass: logits at every position.
fn force<T: Element>(
    driver: &mut Driver<CpuBackend<T>>,
    cases: &[(&Tenant, usize)],
) -> Vec<SequenceOutput> {
    driver.reuse_blocks();
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

fn distance(tenant: &Tenant, index: usize, logits: &[Vec<f32>]) -> Distance {
    let case = &tenant.reference.cases[index];
    let generating = &logits[case.prompt_ids.len() - 1..];
    let mut distance = Distance::default();
    for ((row, top), &token) in generating.iter().zip(&case.top5).zip(&case.tokens) {
        if case.min_margin >= MARGIN && greedy(row) != token {
            distance.other_tokens += 1;
        }
        let (_, all) = log_probs(row, token, TOP);
        for (id, expected) in top {
            let got = all.iter().find(|(other, _)| other == id).map_or(-20.0, |(_, l)| *l);
            let off = (f64::from(got).exp() - expected.exp()).abs();
            distance.probability = distance.probability.max(off);
        }
    }
    let check = &tenant.reference.logits_check;
    if check.case == index {
        compare_logits(&mut distance, &check.prompt_positions, logits);
        compare_logits(&mut distance, &check.generated_positions, generating);
    }
    distance
}

fn compare_logits(distance: &mut Distance, positions: &[PositionLogits], logits: &[Vec<f32>]) {
    for (expected, row) in positions.iter().zip(logits) {
        for (id, logit) in expected.ids.iter().zip(&expected.logits) {
            let off = (f64::from(row[*id as usize]) - logit).abs();
            distance.logit = distance.logit.max(off);
            distance.squares += off * off;
            distance.logits += 1;
        }
    }
}

#[test]
fn logits_match_alone_and_in_one_batch_over_all_adapters_and_the_base() {
    let mut driver = Driver::new(CpuBackend::new(&base_model().weights, config()).unwrap());
    let tenants = tenants(&mut driver);
    let mut alone = Vec::new();
    for tenant in &tenants {
        for index in 0..tenant.reference.cases.len() {
            let output = force(&mut driver, &[(tenant, index)]).remove(0);
            let name = format!("{} case {index}", tenant.name);
            distance(tenant, index, &output.logits).assert_within(&BF16, &name);
            if tenant.reference.logits_check.case == index {
                alone.push(output.logits);
            }
        }
    }
    let cases: Vec<_> = tenants.iter().map(|t| (t, t.reference.logits_check.case)).collect();
    let together = force(&mut driver, &cases);
    for ((tenant, together), alone) in tenants.iter().zip(together).zip(alone) {
        assert!(together.logits == alone, "{}: other bits beside others", tenant.name);
    }
}

#[test]
fn computed_in_f32_the_logits_are_the_references() {
    let mut driver = Driver::new(CpuBackend::exact(&base_model().weights, config()).unwrap());
    let tenants = tenants(&mut driver);
    let cases: Vec<_> = tenants.iter().map(|t| (t, t.reference.logits_check.case)).collect();
    for ((tenant, index), output) in cases.iter().zip(force(&mut driver, &cases)) {
        distance(tenant, *index, &output.logits).assert_within(&F32, &tenant.name);
    }
}

#[test]
fn planted_mistakes_show_in_the_logits_where_the_tokens_pass() {
    let scale_of_one =
        |a: &mut HostAdapter| a.header.modules.iter_mut().for_each(|m| m.scale = 1.0);
    let without_keys = |a: &mut HostAdapter| a.header.modules.retain(|m| m.linear != Linear::KProj);
    let mut driver = Driver::new(CpuBackend::new(&base_model().weights, config()).unwrap());
    let mistakes: [fn(&mut HostAdapter); 2] = [scale_of_one, without_keys];
    for (index, plant) in (0..).zip(mistakes) {
        let mut adapter = kit_adapter("pirate", &base_model().weights.config.spec);
        plant(&mut adapter);
        let slot = Some(driver.upload(index, adapter));
        let reference = lorikeet_kit::reference(Some("pirate"));
        let tenant = Tenant { name: "pirate".into(), slot, reference };
        let case = tenant.reference.logits_check.case;
        let output = force(&mut driver, &[(&tenant, case)]).remove(0);
        let distance = distance(&tenant, case, &output.logits);
        assert_eq!(distance.other_tokens, 0, "the mistake shows in the tokens already");
        assert!(!distance.logits_are_within(&BF16), "{distance:?}");
    }
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
    driver: &mut Driver<CpuBackend<bf16>>,
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
