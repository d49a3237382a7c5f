//! Shrink, and each kernel that expands, over segment patterns and ranks. DoRA's gains too.

use super::adapter::{AdapterShape, random_adapter};
use super::expand::Consumer;
use super::lab::{Lab, Part, Random, batch, outcome, relative_error, to_f32};
use super::shrink::Shrink;
use super::{CheckError, Outcome};
use crate::backend::cuda::adapters::Adapters;
use crate::backend::cuda::device::DevicePointer;
use crate::backend::cuda::kernels::{Kernels, Scales};
use crate::backend::cuda::layout::{ExtentLayout, Group, Z_STRIDE};
use crate::backend::cuda::moving::Mover;
use crate::backend::cuda::plan::StepPlan;
use crate::backend::cuda::weights::{DeviceWeights, Precision};
use crate::backend::cuda::workspace::PlanAddresses;
use crate::backend::cuda::{CudaConfig, open};
use crate::backend::{AdapterSlot, HostAdapter, UploadDone};
use crate::model::{ModelConfig, Rope};
use half::bf16;
use lorikeet_contract::Linear;
use lorikeet_contract::adapter::{Dtype, ModuleEntry, TensorRef};
use std::sync::Arc;

/// Which of 30 adapters each row has.
#[derive(Debug, Clone, Copy)]
enum Pattern {
    Identical,
    Distinct,
    Uniform,
    Zipf,
    /// Half of the rows have no adapter, most others the same.
    Skewed,
}

const ADAPTERS: u32 = 30;
pub const ROPE_THETA: f32 = 10_000.0;

impl Pattern {
    const ALL: [Pattern; 5] =
        [Self::Identical, Self::Distinct, Self::Uniform, Self::Zipf, Self::Skewed];

    fn parts(self, rows: u32) -> Vec<Part> {
        let mut random = Random::new(6);
        let mut adapter = |row: u32| match self {
            Self::Identical => Some(0),
            Self::Distinct => Some(row % ADAPTERS),
            Self::Uniform => Some(random.below(ADAPTERS.into()) as u32),
            Self::Zipf => Some((1.0 / random.float(1.0).abs().max(0.04)) as u32 % ADAPTERS),
            Self::Skewed if row.is_multiple_of(2) => None,
            Self::Skewed => Some(if random.below(4) == 0 { 1 + row % 7 } else { 0 }),
        };
        (0..rows).map(|row| Part { position: row % 50, rows: 1, adapter: adapter(row) }).collect()
    }
}

pub fn check(lab: &Lab, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    let ranks = [4, 8, 16, 32, 64, 128];
    for rank in ranks {
        let bench = Bench::new(lab, &format!("r{rank}"), |_| (rank, Dtype::BF16, false))?;
        bench.check(&Pattern::Distinct.parts(32), "distinct 32", report)?;
        bench.check(&Pattern::Identical.parts(33), "identical 33", report)?;
        if rank == 16 || rank == 64 {
            bench.check(&Pattern::Distinct.parts(128), "distinct 128", report)?;
        }
    }
    let mixed = Bench::new(lab, "mixed ranks", |index| {
        (ranks[index as usize % 6] + index % 3, Dtype::F32, false)
    })?;
    for pattern in Pattern::ALL {
        for rows in [1, 7, 50] {
            let name = format!("{pattern:?} {rows}").to_lowercase();
            mixed.check(&pattern.parts(rows), &name, report)?;
        }
    }
    let mut chunks = Pattern::Uniform.parts(20);
    chunks.push(Part { position: 5, rows: 100, adapter: Some(3) });
    chunks.push(Part { position: 0, rows: 40, adapter: None });
    mixed.check(&chunks, "decode and prefill", report)?;
    let dora = Bench::new(lab, "dora r8", |_| (8, Dtype::F16, true))?;
    dora.check_gains(report)?;
    dora.check(&Pattern::Uniform.parts(32), "uniform 32", report)
}

/// What differs with 8-bit weights: scales in every kernel that reads products.
pub fn check_briefly(lab: &Lab, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    let mixed = Bench::new(lab, "fp8, mixed ranks", |index| {
        ([4, 16, 64][index as usize % 3], Dtype::BF16, index % 4 == 0)
    })?;
    mixed.check(&Pattern::Distinct.parts(32), "distinct 32", report)?;
    mixed.check(&Pattern::Skewed.parts(50), "skewed 50", report)
}

/// What differs with keys and values of 8 bits: how they are written.
pub fn check_kv(lab: &Lab, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    let mixed = Bench::new(lab, "fp8 KV", |_| (16, Dtype::BF16, false))?;
    let parts = Pattern::Skewed.parts(50);
    let batch = batch(&parts, lab.spec.vocab_size);
    let (plan, memory) = lab.plan(&batch, &mixed.extents)?;
    let step = PlannedStep { plan: &plan, at: memory.addresses() };
    mixed.check_group(&step, Group::Qkv, "skewed 50", report)
}

/// Adapters on the device, and their tensors on the host.
struct Bench<'a> {
    lab: &'a Lab,
    name: String,
    host: Vec<Arc<HostAdapter>>,
    extents: Vec<DevicePointer>,
    weights: Arc<DeviceWeights>,
    /// Holds the extents.
    _adapters: Adapters,
    _arena: crate::backend::cuda::device::DeviceMemory,
}

impl<'a> Bench<'a> {
    fn new(
        lab: &'a Lab,
        name: &str,
        kind: impl Fn(u32) -> (u32, Dtype, bool),
    ) -> Result<Self, CheckError> {
        let config = CudaConfig {
            ordinal: lab.device.info.ordinal,
            precision: lab.kernels.target().precision,
            kv_precision: lab.kernels.target().kv_precision,
            ..CudaConfig::default()
        };
        let (_, _, kernels) = open(&config, lab.spec.head_dim)?;
        let kernels: Arc<Kernels> = Arc::new(kernels);
        let weights = Arc::new(DeviceWeights::dummy(
            &lab.device,
            &lab.stream,
            &kernels,
            &model_config(lab),
            7,
        )?);
        let host: Vec<Arc<HostAdapter>> = (0..ADAPTERS)
            .map(|index| {
                let (rank, dtype, dora) = kind(index);
                // Some lack a linear of a group, or a whole group.
                let skip = index % 5;
                let linears = Linear::ALL.into_iter().filter(|l| skip < 3 || l.index() % 4 != 1);
                let linears = linears.filter(|l| skip != 2 || *l != Linear::DownProj).collect();
                let shape = AdapterShape { rank, linears, dora, dtype };
                Arc::new(random_adapter(&lab.spec, &shape, 100 + u64::from(index)))
            })
            .collect();
        let layouts: Vec<ExtentLayout> = host
            .iter()
            .map(|a| ExtentLayout::new(&a.header, &lab.spec))
            .collect::<Result<_, _>>()?;
        let bytes = layouts.iter().map(|l| l.bytes).sum();
        let arena = lab.device.allocate("device memory for adapters", bytes)?;
        let (end, mover) = (arena.address() + bytes, Mover::new(&lab.device)?);
        let mut adapters =
            Adapters::new(&lab.device, kernels, weights.clone(), end, bytes, ADAPTERS)?;
        for (index, (adapter, layout)) in (0..).zip(host.iter().zip(layouts)) {
            let slot = AdapterSlot { index, generation: 1 };
            adapters.begin_upload(slot, adapter.clone(), layout, &lab.stream, &mover)?;
        }
        let mut done: Vec<UploadDone> = Vec::new();
        while done.len() < host.len() {
            adapters.poll(&mut done);
            std::thread::yield_now();
        }
        done.into_iter().try_for_each(|d| d.result)?;
        let address = |index| adapters.address(AdapterSlot { index, generation: 1 });
        let extents = (0..ADAPTERS).map(address).collect::<Result<_, _>>()?;
        let name = name.to_owned();
        Ok(Self { lab, name, host, extents, weights, _adapters: adapters, _arena: arena })
    }

    fn check(
        &self,
        parts: &[Part],
        pattern: &str,
        report: &mut dyn FnMut(Outcome),
    ) -> Result<(), CheckError> {
        let batch = batch(parts, self.lab.spec.vocab_size);
        let (plan, memory) = self.lab.plan(&batch, &self.extents)?;
        let step = PlannedStep { plan: &plan, at: memory.addresses() };
        for group in Group::ALL {
            self.check_group(&step, group, pattern, report)?;
        }
        Ok(())
    }

    fn check_group(
        &self,
        step: &PlannedStep,
        group: Group,
        pattern: &str,
        report: &mut dyn FnMut(Outcome),
    ) -> Result<(), CheckError> {
        let (lab, b) = (self.lab, &self.lab.buffers);
        let (outputs, inputs) = group.shape(&lab.spec);
        let rows = step.plan.rows.len();
        let mut random = Random::new(8);
        let x = random.bf16s(rows * inputs as usize, 1.7);
        let y = random.bf16s(rows * outputs as usize, 1.7);
        let x_memory = lab.memory(&x)?;
        lab.write(b.y, &y)?;
        // What a group without adapters leaves behind must not be read.
        lab.write(b.z, &vec![bf16::NAN; rows * Z_STRIDE as usize])?;
        let shrink = Shrink::new(lab, step, group, &self.weights, x_memory.address());
        shrink.launch(lab)?;
        let host_scales = HostScales::new(lab, rows, outputs as usize);
        let outputs_memory = lab.memory(&host_scales.outputs)?;
        lab.write(b.x_scales, &host_scales.rows)?;
        let scales = Scales { rows: b.x_scales, outputs: outputs_memory.address() };
        let products = host_scales.apply(&y);
        let adapted = self.adapted(step, group, &x, products);
        let consumer = Consumer::new(lab, step, group, &self.weights, scales)?;
        let (kernel, error) = consumer.check(&adapted)?;
        let (a_bytes, b_bytes) = self.bytes(step, group);
        let a_bytes = a_bytes + shrink.weights_bytes();
        let case = format!("{} {} {group:?} {pattern}", lab.spec.id, self.name);
        let io = (rows as u64) * u64::from(inputs) * 2;
        let time = lab.time(a_bytes + io, || shrink.launch(lab))?;
        // Keys and values in e4m3 are rounded to 3 bits behind the leading one.
        let rounds = group == Group::Qkv && lab.kernels.target().kv_precision == Precision::Fp8;
        let tolerance = if rounds { 0.03 } else { 0.006 };
        report(outcome(shrink.name(), case.clone(), error, tolerance, Some(time)));
        let io = rows as u64 * u64::from(outputs) * 4;
        let time = lab.time(b_bytes + io, || consumer.launch())?;
        report(outcome(kernel, case, error, tolerance, Some(time)));
        Ok(())
    }

    /// Bytes of the A and of the B matrices that a step reads, each once.
    fn bytes(&self, step: &PlannedStep, group: Group) -> (u64, u64) {
        let mut used: Vec<DevicePointer> = step.plan.tiles.iter().map(|t| t.adapter).collect();
        used.dedup();
        let entries = used.iter().filter_map(|a| self.extents.iter().position(|e| e == a));
        let entries = entries.flat_map(|i| &self.host[i].header.modules);
        let (mut a, mut b) = (0, 0);
        for m in entries.filter(|m| group.linears().contains(&m.linear)) {
            a += u64::from(m.rank) * u64::from(m.in_features) * 2;
            b += u64::from(m.rank) * u64::from(m.out_features) * 2;
        }
        (a, b)
    }

    /// `(y + scale B A x) gain` of every row, on the host.
    fn adapted(&self, step: &PlannedStep, group: Group, x: &[bf16], mut out: Vec<f32>) -> Vec<f32> {
        let spec = &self.lab.spec;
        let (outputs, inputs) = group.shape(spec);
        let (outputs, inputs) = (outputs as usize, inputs as usize);
        for tile in &step.plan.tiles {
            let Some(index) = self.extents.iter().position(|e| *e == tile.adapter) else {
                continue;
            };
            let adapter = &self.host[index];
            let entries = adapter.header.modules.iter();
            for m in entries.filter(|m| group.linears().contains(&m.linear)) {
                let (a, b) = (bf16_tensor(adapter, &m.a), bf16_tensor(adapter, &m.b));
                let gains = self.gains(index, m);
                let first = group.first_output(spec, m.linear) as usize;
                for row in tile.first_row as usize..(tile.first_row + tile.rows) as usize {
                    let x = to_f32(&x[row * inputs..][..inputs]);
                    let dot = |a: &[f32]| a.iter().zip(&x).map(|(a, x)| a * x).sum::<f32>();
                    let z: Vec<f32> = a.chunks(inputs).map(dot).collect();
                    let columns = &mut out[row * outputs + first..][..m.out_features as usize];
                    for (i, (out, b)) in columns.iter_mut().zip(b.chunks(z.len())).enumerate() {
                        let update: f32 = b.iter().zip(&z).map(|(b, z)| b * z).sum();
                        *out += m.scale * update;
                        if let Some(gains) = &gains {
                            *out *= gains[i];
                        }
                    }
                }
            }
        }
        out
    }

    /// The gains that the device computed for a module.
    fn gains(&self, index: usize, m: &ModuleEntry) -> Option<Vec<f32>> {
        m.magnitude?;
        let layout = ExtentLayout::new(&self.host[index].header, &self.lab.spec).ok()?;
        let module = layout.table[m.layer as usize].modules[m.linear.index()];
        self.lab.read(self.extents[index] + module.gain, m.out_features as usize).ok()
    }

    fn check_gains(&self, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
        let (spec, adapter) = (&self.lab.spec, &self.host[0]);
        for m in &adapter.header.modules {
            let Some(magnitude) = &m.magnitude else { continue };
            let Some(gains) = self.gains(0, m) else { continue };
            let (rank, inputs) = (m.rank as usize, m.in_features as usize);
            let (a, b) = (bf16_tensor(adapter, &m.a), bf16_tensor(adapter, &m.b));
            let magnitudes = tensor(adapter, magnitude);
            let group = Group::ALL.into_iter().find(|g| g.linears().contains(&m.linear));
            let Some(group) = group else { continue };
            // The first rows suffice: each thread block has 8.
            let rows = 40;
            if self.weights.precision == Precision::Fp8 {
                continue;
            }
            let first = u64::from(group.first_output(spec, m.linear)) * inputs as u64 * 2;
            let from = self.weights.layers[0].group(group) + first;
            let w: Vec<bf16> = self.lab.read(from, rows * inputs)?;
            let mut expected = Vec::with_capacity(rows);
            for row in 0..rows {
                let mut v = to_f32(&w[row * inputs..][..inputs]);
                for r in 0..rank {
                    let factor = m.scale * b[row * rank + r];
                    for (v, a) in v.iter_mut().zip(&a[r * inputs..][..inputs]) {
                        *v += factor * a;
                    }
                }
                let norm = v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
                expected.push(magnitudes[row] / norm);
            }
            let case = format!("{} {}", spec.id, m.linear.as_str());
            let error = relative_error(&gains[..rows], &expected);
            report(outcome("dora_gain", case, error, 1e-4, None));
        }
        Ok(())
    }
}

/// What products with 8-bit weights leave out; ones otherwise.
struct HostScales {
    rows: Vec<f32>,
    outputs: Vec<f32>,
}

impl HostScales {
    fn new(lab: &Lab, rows: usize, outputs: usize) -> Self {
        let mut random = Random::new(10);
        let mut some = |count: usize| match lab.kernels.target().precision {
            Precision::Bf16 => vec![1.0; count],
            Precision::Fp8 => (0..count).map(|_| 1.0 + random.float(0.5)).collect(),
        };
        Self { rows: some(rows), outputs: some(outputs) }
    }

    fn apply(&self, y: &[bf16]) -> Vec<f32> {
        let width = self.outputs.len();
        let scale = |i: usize| self.rows[i / width] * self.outputs[i % width];
        y.iter().enumerate().map(|(i, v)| v.to_f32() * scale(i)).collect()
    }
}

fn model_config(lab: &Lab) -> ModelConfig {
    ModelConfig {
        rope: Rope::plain(ROPE_THETA),
        tie_word_embeddings: true,
        ..ModelConfig::plain(lab.spec.clone())
    }
}

fn tensor(adapter: &HostAdapter, tensor: &TensorRef) -> Vec<f32> {
    let bytes = &adapter.file().expect("checks prepare none")[tensor.offset as usize..]
        [..tensor.bytes as usize];
    tensor.dtype.to_f32(bytes)
}

/// As the device has it.
fn bf16_tensor(adapter: &HostAdapter, of: &TensorRef) -> Vec<f32> {
    tensor(adapter, of).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect()
}

/// A plan, and where it lies on the device.
pub struct PlannedStep<'a> {
    pub plan: &'a StepPlan,
    pub at: PlanAddresses,
}
