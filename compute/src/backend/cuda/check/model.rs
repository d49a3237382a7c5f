//! Whole forward passes of seeded random models against the slow f32 reference, teacher-forced:
//! alone, in mixed batches, in chunks, and after slots and blocks were used by others.

use super::adapter::{AdapterShape, random_adapter};
use super::lab::{Random, outcome, relative_error, to_f32};
use super::{CheckError, Outcome};
use crate::backend::BlockId;
use crate::backend::batch::SequenceId;
use crate::backend::cuda::{CudaBackend, CudaConfig};
use crate::backend::{
    AdapterSlot, Backend, HostAdapter, Input, LogitsWanted, SequenceStep, StepBatch,
};
use crate::model::reference::{ReferenceAdapter, ReferenceModel};
use crate::model::{HeadNorms, LayerWeights, Matrix, ModelConfig, ModelWeights, SlidingWindow};
use half::bf16;
use lorikeet_contract::adapter::Dtype;
use lorikeet_contract::{BaseModelSpec, Linear};
use std::sync::Arc;

/// bf16 products through all layers; planted mistakes are ten times as large.
const TOLERANCE: f64 = 0.03;
/// Tokens of each sequence, and of the chunks that it is fed in.
const TOKENS: usize = 45;
const CHUNKS: [usize; 5] = [20, 1, 1, 22, 1];

pub fn check(
    config: &CudaConfig,
    spec: BaseModelSpec,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let weights = random_model(spec);
    let spec = weights.config.spec.clone();
    let config = CudaConfig {
        kv_tokens: Some(4096),
        adapter_bytes: 4 << 30,
        max_rows: Some(512),
        ..config.clone()
    };
    let mut driver = Driver { backend: CudaBackend::new(&weights, config)?, step: 0 };
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

/// What single families have: biases, normalised heads, windows in some layers.
pub fn check_families(
    config: &CudaConfig,
    spec: &BaseModelSpec,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let plain = random_model(spec.clone());
    let [biased, normalised, windowed] = [(); 3].map(|()| plain.clone());
    let attention = [Linear::QProj, Linear::KProj, Linear::VProj];
    let biased = ModelWeights {
        config: ModelConfig { biased: attention.to_vec(), ..biased.config },
        layers: (0..).zip(biased.layers).map(|(i, layer)| with_biases(spec, layer, i)).collect(),
        ..biased
    };
    let normalised = ModelWeights {
        config: ModelConfig { head_norms: true, ..normalised.config },
        layers: (0..).zip(normalised.layers).map(|(i, l)| with_head_norms(spec, l, i)).collect(),
        ..normalised
    };
    let layers = (0..spec.num_layers).map(|layer| layer % 2 == 0).collect();
    let window = SlidingWindow { positions: 19, layers };
    let windowed = ModelWeights {
        config: ModelConfig { sliding_window: Some(window), ..windowed.config },
        ..windowed
    };
    check_base(config, &biased, "biases of q, k and v", TOLERANCE, report)?;
    check_base(config, &normalised, "normalised heads", TOLERANCE, report)?;
    check_base(config, &windowed, "windows in every second layer", TOLERANCE, report)
}

fn with_biases(spec: &BaseModelSpec, mut layer: LayerWeights, index: u64) -> LayerWeights {
    for linear in [Linear::QProj, Linear::KProj, Linear::VProj] {
        let seed = 30_000 + index * 10 + linear.index() as u64;
        let bias = Random::new(seed).bf16s(spec.shape(linear).0, 1.0);
        layer.biases[linear.index()] = Some(to_f32(&bias));
    }
    layer
}

fn with_head_norms(spec: &BaseModelSpec, mut layer: LayerWeights, index: u64) -> LayerWeights {
    let weights = |seed: u64| {
        let around_one = Random::new(seed + index).bf16s(spec.head_dim as usize, 0.5);
        around_one.iter().map(|v| bf16::from_f32(1.0 + v.to_f32()).to_f32()).collect()
    };
    layer.head_norms = Some(HeadNorms { query: weights(40_000), key: weights(50_000) });
    layer
}

/// A model without adapters against the reference: whole, and in chunks.
pub fn check_base(
    config: &CudaConfig,
    weights: &ModelWeights,
    what: &str,
    tolerance: f64,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let spec = weights.config.spec.clone();
    let config = CudaConfig {
        kv_tokens: Some(4096),
        adapter_bytes: 1 << 20,
        max_rows: Some(512),
        ..config.clone()
    };
    let mut driver = Driver { backend: CudaBackend::new(weights, config)?, step: 0 };
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

/// A prompt of its own, an adapter, and what should come out.
#[derive(Default)]
struct Tenant {
    slot: Option<AdapterSlot>,
    seed: u64,
    logits: Vec<f32>,
}

impl Tenant {
    fn distance(&self, out: &[f32]) -> f64 {
        relative_error(out, &self.logits)
    }
}

fn prompt(seed: u64, vocabulary: u32) -> Vec<u32> {
    let mut random = Random::new(1000 + seed);
    (0..TOKENS).map(|_| random.below(vocabulary.into()) as u32).collect()
}

struct Reference {
    model: ReferenceModel,
    vocabulary: u32,
}

impl Reference {
    fn new(weights: &ModelWeights) -> Result<Self, CheckError> {
        let model =
            ReferenceModel::new(weights).map_err(|e| CheckError::Reference(e.to_string()))?;
        Ok(Self { model, vocabulary: weights.config.spec.vocab_size })
    }

    fn logits(&self, seed: u64, adapter: Option<&HostAdapter>) -> Result<Vec<f32>, CheckError> {
        let failed = |e: candle_core::Error| CheckError::Reference(e.to_string());
        let adapter = match adapter {
            Some(a) => Some(ReferenceAdapter::from_artifact(&a.header, a.file()?).map_err(failed)?),
            None => None,
        };
        let tokens = prompt(seed, self.vocabulary);
        let rows = self.model.forward(&tokens, adapter.as_ref()).map_err(failed)?;
        Ok(rows.concat())
    }
}

struct Driver {
    backend: CudaBackend,
    step: u64,
}

impl Driver {
    fn upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
    ) -> Result<AdapterSlot, CheckError> {
        self.backend.begin_upload(slot, adapter)?;
        let mut done = Vec::new();
        while done.is_empty() {
            std::thread::yield_now();
            self.backend.poll_uploads(&mut done);
        }
        done.into_iter().try_for_each(|d| d.result)?;
        Ok(slot)
    }

    /// Feeds each tenant's prompt in chunks, all tenants in the same steps, one step ahead; gives
    /// the logits of every position. Blocks are taken in an order that differs with each call.
    fn force(
        &mut self,
        tenants: &[&Tenant],
        chunks: &[usize],
    ) -> Result<Vec<Vec<f32>>, CheckError> {
        let vocabulary = self.backend.limits.spec.vocab_size;
        let prompts: Vec<Vec<u32>> = tenants.iter().map(|t| prompt(t.seed, vocabulary)).collect();
        let each = TOKENS.div_ceil(16) as u32;
        let shift = self.step as u32 * 7;
        let num_blocks = self.backend.capacity().num_blocks;
        let block = |i: u32| BlockId((i * 5 + shift) % num_blocks);
        let mut position = 0;
        let mut tickets = Vec::new();
        let mut logits = vec![Vec::new(); tenants.len()];
        let collect = |backend: &mut CudaBackend, ticket, logits: &mut Vec<Vec<f32>>| {
            for (logits, output) in logits.iter_mut().zip(backend.collect(ticket)?.sequences) {
                logits.extend(output.logits.concat());
            }
            Ok::<(), CheckError>(())
        };
        for &chunk in chunks {
            self.step += 1;
            let sequence = |(index, (tenant, prompt)): (u32, (&&Tenant, &Vec<u32>))| SequenceStep {
                sequence: SequenceId(index.into()),
                input: Input::Tokens(prompt[position..position + chunk].to_vec()),
                position: position as u32,
                blocks: (index * each..(index + 1) * each).map(block).collect(),
                adapter: tenant.slot,
                sample: None,
                logits: LogitsWanted::All,
            };
            let sequences = (0..).zip(tenants.iter().zip(&prompts)).map(sequence).collect();
            tickets.push(self.backend.submit(&StepBatch { step: self.step, sequences })?);
            position += chunk;
            if tickets.len() == self.backend.capacity().pipeline_depth as usize {
                collect(&mut self.backend, tickets.remove(0), &mut logits)?;
            }
        }
        for ticket in tickets {
            collect(&mut self.backend, ticket, &mut logits)?;
        }
        Ok(logits)
    }
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
        data: Random::new(seed).bf16s(rows * cols, scale),
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
