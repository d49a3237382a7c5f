//! Whole forward passes of seeded random models against the slow f32 reference, teacher-forced:
//! alone, in mixed batches, in chunks, and after slots and blocks were used by others.

use super::adapter::{AdapterShape, random_adapter};
use super::forced::{CHUNKS, Driver, Reference, TOKENS, TOP, Tenant};
use super::lab::{Random, outcome};
use super::{CheckError, Outcome};
use crate::backend::cuda::CudaConfig;
use crate::backend::{AdapterSlot, Backend, HostAdapter, SampledToken};
use crate::model::{LayerWeights, Matrix, ModelConfig, ModelWeights};
use crate::sampling::log_probs;
use half::bf16;
use lorikeet_contract::adapter::Dtype;
use lorikeet_contract::{BaseModelSpec, Linear};
use std::sync::Arc;

/// bf16 products through all layers; planted mistakes are ten times as large.
pub const TOLERANCE: f64 = 0.03;
/// Of a log probability against that of logits which the device gave for the same tokens; the output layer
/// may take another algorithm for another number of rows.
const SCORE_TOLERANCE: f64 = 0.02;

pub fn check(
    config: &CudaConfig,
    spec: BaseModelSpec,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let weights = random_model(spec);
    let spec = weights.config.spec.clone();
    let mut driver = Driver::new(config, &weights, 4 << 30)?;
    let reference = Reference::new(&weights)?;
    let adapters = adapters(&spec);
    let mut tenants = vec![Tenant { slot: None, logits: reference.logits(0, None)?, seed: 0 }];
    for (index, adapter) in (0..).zip(&adapters) {
        let slot = driver.upload(AdapterSlot { index, generation: 1 }, adapter.clone())?;
        let seed = u64::from(index) + 1;
        let logits = reference.logits(seed, Some(adapter))?;
        tenants.push(Tenant { slot: Some(slot), logits, seed });
    }
    let name = |what: &str| format!("{} x {} layers, {what}", spec.id, spec.num_layers);

    let mut worst = 0f64;
    for tenant in &tenants {
        let out = driver.force(&[tenant], &[TOKENS])?;
        worst = worst.max(tenant.distance(&out[0]));
    }
    report(outcome("model", name("each alone, one chunk"), worst, TOLERANCE, None));

    let all: Vec<&Tenant> = tenants.iter().collect();
    for (what, chunks) in [("all together", &[TOKENS][..]), ("all together, chunks", &CHUNKS)] {
        let outputs = driver.force(&all, chunks)?;
        let distances = all.iter().zip(&outputs).map(|(t, out)| t.distance(out));
        let worst = distances.fold(0.0, f64::max);
        report(outcome("model", name(what), worst, TOLERANCE, None));
        let scores = driver.score(&all, chunks)?;
        let distances = all.iter().zip(outputs.iter().zip(&scores)).map(|(t, (logits, scores))| {
            score_distance(&t.prompt(spec.vocab_size), logits, scores)
        });
        let worst = distances.fold(0.0, f64::max);
        let what = format!("{what}: scores of the prompt");
        report(outcome("model", name(&what), worst, SCORE_TOLERANCE, None));
    }

    // Every slot goes to the next adapter: an extent or a table left behind would show.
    for tenant in &tenants {
        if let Some(slot) = tenant.slot {
            driver.backend.evict(slot);
        }
    }
    for (index, tenant) in (0..).zip(tenants.iter_mut().skip(1)) {
        let adapter = &adapters[(tenant.seed as usize) % adapters.len()];
        let slot = AdapterSlot { index, generation: 2 };
        tenant.slot = Some(driver.upload(slot, adapter.clone())?);
        tenant.logits = reference.logits(tenant.seed, Some(adapter))?;
    }
    let all: Vec<&Tenant> = tenants.iter().collect();
    let outputs = driver.force(&all, &CHUNKS)?;
    let worst = all.iter().zip(&outputs).map(|(t, out)| t.distance(out)).fold(0.0, f64::max);
    report(outcome("model", name("slots given to others"), worst, TOLERANCE, None));

    // The check itself must see an adapter that is missing.
    let base = Tenant { slot: None, ..tenants.pop().unwrap_or_default() };
    let out = driver.force(&[&base], &[TOKENS])?;
    let distance = base.distance(&out[0]);
    let seen = if distance > 10.0 * TOLERANCE { 0.0 } else { f64::INFINITY };
    report(outcome("model", name("a missing adapter is noticed"), seen, 0.0, None));
    Ok(())
}

/// The largest distance of a score, of the token itself or of the likeliest in its place; infinite where
/// one is missing.
fn score_distance(prompt: &[u32], logits: &[f32], scores: &[SampledToken]) -> f64 {
    if scores.len() + 1 != prompt.len() {
        return f64::INFINITY;
    }
    let rows = logits.chunks(logits.len() / prompt.len());
    let mut worst = 0f64;
    for ((row, score), &token) in rows.zip(scores).zip(&prompt[1..]) {
        let (logprob, top) = log_probs(row, token, TOP);
        let given = score.logprob.into_iter().chain(score.top_logprobs.iter().map(|(_, l)| *l));
        let expected = [logprob].into_iter().chain(top.iter().map(|(_, l)| *l));
        if score.token != token || score.top_logprobs.len() != top.len() {
            return f64::INFINITY;
        }
        let distances = given.zip(expected).map(|(a, b)| f64::from((a - b).abs()));
        // Not a number is no small distance.
        worst = distances.fold(worst, |worst, d| if d <= worst { worst } else { d });
    }
    if worst.is_nan() { f64::INFINITY } else { worst }
}

/// A model without adapters against the reference: whole, and in chunks.
pub fn check_base(
    config: &CudaConfig,
    weights: &ModelWeights,
    what: &str,
    tolerance: f64,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let spec = &weights.config.spec;
    let mut driver = Driver::new(config, weights, 1 << 20)?;
    let reference = Reference::new(weights)?;
    let tenants: Vec<Tenant> = (0..4)
        .map(|seed| Ok(Tenant { slot: None, logits: reference.logits(seed, None)?, seed }))
        .collect::<Result<_, CheckError>>()?;
    let all: Vec<&Tenant> = tenants.iter().collect();
    let mut worst = 0f64;
    for chunks in [&[TOKENS][..], &CHUNKS] {
        let outputs = driver.force(&all, chunks)?;
        worst = all.iter().zip(&outputs).map(|(t, out)| t.distance(out)).fold(worst, f64::max);
    }
    let name = format!("{} x {} layers, {what}", spec.id, spec.num_layers);
    report(outcome("model", name, worst, tolerance, None));
    Ok(())
}

/// One of each kind that is served, every rank another.
pub fn adapters(spec: &BaseModelSpec) -> Vec<Arc<HostAdapter>> {
    let all = Linear::ALL.to_vec();
    let attention = vec![Linear::QProj, Linear::KProj, Linear::VProj, Linear::OProj];
    let shape = |rank, linears: &[Linear], dora, dtype| AdapterShape {
        rank,
        linears: linears.to_vec(),
        dora,
        dtype,
    };
    let shapes = [
        shape(16, &all, false, Dtype::BF16),
        shape(64, &attention, false, Dtype::BF16),
        shape(4, &all, false, Dtype::F32),
        shape(13, &all, false, Dtype::F16),
        shape(8, &all, true, Dtype::F32),
        shape(128, &[Linear::DownProj, Linear::VProj], false, Dtype::BF16),
        shape(1, &[Linear::QProj, Linear::UpProj], false, Dtype::F32),
        shape(32, &all, true, Dtype::BF16),
    ];
    let plain = (1..).zip(&shapes).map(|(seed, s)| random_adapter(spec, s, seed));
    plain.chain([patterned(spec)]).map(Arc::new).collect()
}

/// Ranks and scales that differ from module to module, as rank and alpha patterns and rsLoRA give.
fn patterned(spec: &BaseModelSpec) -> HostAdapter {
    let shape =
        AdapterShape { rank: 24, linears: Linear::ALL.to_vec(), dora: false, dtype: Dtype::BF16 };
    let mut adapter = random_adapter(spec, &shape, 99);
    for module in &mut adapter.header.modules {
        let place = module.layer as usize + module.linear.index();
        // Fewer ranks: the first rows of A; a B of as many values is another one, but as random.
        let rank = [24, 8, 5, 16][place % 4];
        module.a.bytes = u64::from(rank * module.in_features) * 2;
        module.b.bytes = u64::from(rank * module.out_features) * 2;
        module.rank = rank;
        module.scale = 8.0 / (rank as f32).sqrt() / 4.0;
    }
    adapter
}

/// Weights of the size that keeps activations in range.
pub fn random_model(spec: BaseModelSpec) -> ModelWeights {
    let matrix = |seed: u64, (rows, cols): (usize, usize), scale: f32| Matrix {
        rows,
        cols,
        data: Random::new(seed).bf16s(rows * cols, scale).into(),
    };
    let hidden = spec.hidden_size as usize;
    let norm = |seed: u64| -> Vec<f32> {
        let around_one = Random::new(seed).bf16s(hidden, 0.2).into_iter();
        around_one.map(|v| bf16::from_f32(1.0 + v.to_f32()).to_f32()).collect()
    };
    let layer = |layer: u64| LayerWeights {
        linears: Linear::ALL.map(|linear| {
            let shape = spec.shape(linear);
            let seed = 50 + layer * 10 + linear.index() as u64;
            matrix(seed, shape, (3.0 / shape.1 as f32).sqrt())
        }),
        biases: Default::default(),
        head_norms: None,
        input_norm: norm(10_000 + layer),
        post_attention_norm: norm(20_000 + layer),
    };
    let table = (spec.vocab_size as usize, hidden);
    ModelWeights {
        embedding: matrix(1, table, 1.0),
        layers: (0..u64::from(spec.num_layers)).map(layer).collect(),
        norm: norm(3),
        lm_head: Some(matrix(2, table, (3.0 / hidden as f32).sqrt())),
        config: ModelConfig::plain(spec),
    }
}
