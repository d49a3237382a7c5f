//! A real model with trained adapters against the references of a kit: logits and tokens, each
//! tenant alone and all in one batch.

use super::lab::outcome;
use super::{CheckError, Outcome};
use crate::backend::AdapterKey;
use crate::backend::BlockId;
use crate::backend::batch::SequenceId;
use crate::backend::cuda::{CudaBackend, CudaConfig};
use crate::backend::{
    AdapterSlot, Backend, HostAdapter, HostData, Input, LogitsWanted, SampleRequest, SequenceStep,
    StepBatch,
};
use crate::model::{self, LoadProgress};
use crate::sampling::{SamplingParams, greedy, log_probs};
use lorikeet_contract::adapter::{ArtifactHeader, inspect, pack};
use lorikeet_contract::{BaseModelSpec, TenantId};
use serde::Deserialize;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

/// A case's tokens are compared where the likeliest is ahead of the next by this much.
const MARGIN: f64 = 0.5;
/// How far bf16 may be off, by the kit's own account: a logit, their root mean square, a probability.
const LIMITS: [f64; 3] = [1.5, 0.4, 0.1];
/// Log probabilities that are read; a reference lists five.
const TOP: u8 = 50;
const MOST_NEW: usize = 32;
const TOKENS: u32 = 512;

#[derive(Deserialize)]
struct Index {
    adapters: Vec<IndexEntry>,
}

#[derive(Deserialize)]
struct IndexEntry {
    adapter: String,
    /// Others may be refused.
    required: bool,
}

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
    logits_check: LogitsCheck,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    tokens: Vec<u32>,
    top5: Vec<Vec<(u32, f64)>>,
    min_margin: f64,
}

#[derive(Deserialize)]
struct LogitsCheck {
    case: usize,
    prompt_positions: Vec<PositionLogits>,
    generated_positions: Vec<PositionLogits>,
}

#[derive(Deserialize)]
struct PositionLogits {
    ids: Vec<u32>,
    logits: Vec<f64>,
}

struct Tenant {
    name: String,
    slot: Option<AdapterSlot>,
    reference: Reference,
}

/// `model`: the base model's file. `kit`: a folder with `adapters/` and `reference/`.
pub fn check(
    config: &CudaConfig,
    model: &Path,
    kit: &Path,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let loaded = model::load(model, None, &LoadProgress::default())
        .map_err(|e| CheckError::Reference(e.to_string()))?;
    let config = CudaConfig {
        kv_tokens: Some(u64::from(TOKENS) * 32),
        adapter_bytes: Some(1 << 30),
        max_rows: Some(2048),
        ..config.clone()
    };
    let mut driver = Driver { backend: CudaBackend::new(&loaded.weights, config)?, step: 0 };
    let tenants = tenants(&mut driver, kit, &loaded.weights.config.spec)?;
    let cases = tenants.iter().map(|t| t.reference.cases.len()).min().unwrap_or(0);
    for tenant in &tenants {
        let mut worst = 0f64;
        for index in 0..tenant.reference.cases.len() {
            let logits = driver.force(&[(tenant, index)])?;
            worst = worst.max(distance(tenant, index, &logits[0]));
        }
        let case = format!("{}, alone: all cases' logits", tenant.name);
        report(outcome("kit", case, worst, 1.0, None));
    }
    for index in 0..cases {
        let all: Vec<(&Tenant, usize)> = tenants.iter().map(|t| (t, index)).collect();
        let logits = driver.force(&all)?;
        let distances = all.iter().zip(&logits).map(|((t, i), l)| distance(t, *i, l));
        let worst = distances.fold(0.0, f64::max);
        let name = format!("{} tenants together, case {index}", tenants.len());
        report(outcome("kit", format!("{name}: logits"), worst, 1.0, None));
        let others = driver.others(&tenants, index)? as f64;
        report(outcome("kit", format!("{name}: tokens drawn"), others, 0.0, None));
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CheckError> {
    let failed = |e: String| CheckError::Reference(format!("{}: {e}", path.display()));
    let text = fs::read(path).map_err(|e| failed(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))
}

/// The base, and every adapter that must be served and whose weights are at hand.
fn tenants(
    driver: &mut Driver,
    kit: &Path,
    spec: &BaseModelSpec,
) -> Result<Vec<Tenant>, CheckError> {
    let reference = read(&kit.join("reference/base.json"))?;
    let mut tenants = vec![Tenant { name: "base".into(), slot: None, reference }];
    let index: Index = read(&kit.join("reference/index.json"))?;
    let required = index.adapters.into_iter().filter(|entry| entry.required);
    for (place, IndexEntry { adapter: name, .. }) in (0..).zip(required) {
        let folder = kit.join("adapters").join(&name);
        if !folder.join("adapter_model.safetensors").is_file() {
            continue;
        }
        let slot = AdapterSlot { index: place, generation: 1 };
        driver.upload(slot, adapter(&folder, spec)?)?;
        let reference = read(&kit.join(format!("reference/{name}.json")))?;
        tenants.push(Tenant { name, slot: Some(slot), reference });
    }
    Ok(tenants)
}

/// An adapter as it was uploaded, checked and packed as the control plane would.
fn adapter(folder: &Path, spec: &BaseModelSpec) -> Result<HostAdapter, CheckError> {
    let failed = |e: String| CheckError::Reference(format!("{}: {e}", folder.display()));
    let read = |file: &str| fs::read(folder.join(file)).map_err(|e| failed(e.to_string()));
    let config = read("adapter_config.json")?;
    let mut weights = Cursor::new(read("adapter_model.safetensors")?);
    let inspected = inspect(&config, &mut weights, spec).map_err(|e| failed(e.to_string()))?;
    let mut file = Vec::new();
    pack(&inspected.plan, inspected.digest, &mut weights, &mut file)
        .map_err(|e| failed(e.to_string()))?;
    let header =
        ArtifactHeader::parse(&file, file.len() as u64).map_err(|e| failed(e.to_string()))?;
    let tenant = TenantId::from_uuid(uuid::Uuid::nil());
    let key = AdapterKey { tenant, digest: inspected.digest };
    Ok(HostAdapter { key, header, data: HostData::File(Box::new(file)) })
}

/// The largest of the deviations, each over what the kit allows; infinite when a token differs that
/// may not.
fn distance(tenant: &Tenant, index: usize, logits: &[Vec<f32>]) -> f64 {
    let case = &tenant.reference.cases[index];
    let generating = &logits[case.prompt_ids.len() - 1..];
    let mut probability = 0f64;
    for ((row, top), &token) in generating.iter().zip(&case.top5).zip(&case.tokens) {
        if row.iter().any(|v| !v.is_finite()) || case.min_margin >= MARGIN && greedy(row) != token {
            return f64::INFINITY;
        }
        let (_, all) = log_probs(row, token, TOP);
        for (id, expected) in top {
            let got = all.iter().find(|(other, _)| other == id).map_or(-20.0, |(_, l)| *l);
            probability = probability.max((f64::from(got).exp() - expected.exp()).abs());
        }
    }
    let check = &tenant.reference.logits_check;
    let (mut most, mut squares, mut count) = (0f64, 0f64, 0u32);
    if check.case == index {
        let prompt = check.prompt_positions.iter().zip(logits);
        for (expected, row) in prompt.chain(check.generated_positions.iter().zip(generating)) {
            for (id, logit) in expected.ids.iter().zip(&expected.logits) {
                let off = (f64::from(row[*id as usize]) - logit).abs();
                most = most.max(off);
                squares += off * off;
                count += 1;
            }
        }
    }
    let root = (squares / f64::from(count.max(1))).sqrt();
    let shares = [most, root, probability].into_iter().zip(LIMITS).map(|(v, limit)| v / limit);
    shares.fold(0.0, f64::max)
}

struct Driver {
    backend: CudaBackend,
    step: u64,
}

impl Driver {
    fn upload(&mut self, slot: AdapterSlot, adapter: HostAdapter) -> Result<(), CheckError> {
        self.backend.begin_upload(slot, Arc::new(adapter))?;
        let mut done = Vec::new();
        while done.is_empty() {
            std::thread::yield_now();
            self.backend.poll_uploads(&mut done);
        }
        Ok(done.into_iter().try_for_each(|d| d.result)?)
    }

    /// Logits at every position of prompts and expected answers, fed at once.
    fn force(&mut self, cases: &[(&Tenant, usize)]) -> Result<Vec<Vec<Vec<f32>>>, CheckError> {
        self.step += 1;
        let sequence = |(place, (tenant, index)): (u32, &(&Tenant, usize))| {
            let case = &tenant.reference.cases[*index];
            let mut tokens = case.prompt_ids.clone();
            tokens.extend(&case.tokens[..case.tokens.len() - 1]);
            let input = Input::Tokens(tokens);
            SequenceStep { logits: LogitsWanted::All, ..step(tenant, place, input, 0) }
        };
        let sequences = (0..).zip(cases).map(sequence).collect();
        let ticket = self.backend.submit(&StepBatch { step: self.step, sequences })?;
        Ok(self.backend.collect(ticket)?.sequences.into_iter().map(|s| s.logits).collect())
    }

    /// Greedy answers of all tenants to the same case, in the same steps, each submitted before the
    /// one before has been collected: how many differ where they may not.
    fn others(&mut self, tenants: &[Tenant], index: usize) -> Result<usize, CheckError> {
        let mut answers = vec![Vec::new(); tenants.len()];
        let mut tickets = std::collections::VecDeque::new();
        for new in 0..MOST_NEW {
            self.step += 1;
            let sequence = |(place, tenant): (u32, &Tenant)| {
                let prompt = &tenant.reference.cases[index].prompt_ids;
                let (input, position) = match new {
                    0 => (Input::Tokens(prompt.clone()), 0),
                    _ => (Input::PreviousSample, prompt.len() + new - 1),
                };
                let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
                let sample = SampleRequest {
                    params,
                    output_index: 0,
                    edits: Vec::new(),
                    allowed: None,
                    logprobs: None,
                };
                SequenceStep { sample: Some(sample), ..step(tenant, place, input, position as u32) }
            };
            let sequences = (0..).zip(tenants).map(sequence).collect();
            tickets.push_back(self.backend.submit(&StepBatch { step: self.step, sequences })?);
            if tickets.len() == self.backend.capacity().pipeline_depth as usize
                || new + 1 == MOST_NEW
            {
                while let Some(ticket) = tickets.pop_front() {
                    let output = self.backend.collect(ticket)?;
                    for (answer, output) in answers.iter_mut().zip(output.sequences) {
                        answer.extend(output.sampled.map(|s| s.token));
                    }
                    if new + 1 < MOST_NEW {
                        break;
                    }
                }
            }
        }
        let differs = |(tenant, answer): &(&Tenant, Vec<u32>)| {
            let case = &tenant.reference.cases[index];
            case.min_margin >= MARGIN && !answer.starts_with(&case.tokens)
        };
        Ok(tenants.iter().zip(answers).filter(differs).count())
    }
}

/// A tenant's part of a step, with blocks of its own.
fn step(tenant: &Tenant, place: u32, input: Input, position: u32) -> SequenceStep {
    let blocks = TOKENS / 16;
    SequenceStep {
        sequence: SequenceId(place.into()),
        input,
        position,
        blocks: (place * blocks..(place + 1) * blocks).map(BlockId).collect(),
        adapter: tenant.slot,
        sample: None,
        logits: LogitsWanted::None,
    }
}
