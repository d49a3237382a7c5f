//! How a planned step runs: as the replay of a graph where it is small enough, launch by launch
//! otherwise.

use super::CudaBackend;
use super::device::DevicePointer;
use super::error::CudaError;
use super::forward::{Forward, Part, group_shape, head_shape, is_few};
use super::graph::Graph;
use super::layout::Group;
use super::weights::Precision;
use super::workspace::LOGIT_ROWS;

/// Larger steps are launched one by one: they keep the device busy for longer than that takes.
const MAX_GRAPH_ROWS: u32 = 2048;

/// A card at rest has higher clocks than one that has come to its limit of power: products are timed
/// after so many milliseconds of them, and each for so long.
const WARM_UP_MS: f32 = 1000.0;
const MEASURED_MS: f32 = 50.0;

/// What a recorded graph depends on; never on which adapters a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GraphKey {
    bucket: u32,
    has_adapters: bool,
    has_chunks: bool,
    /// Rows of the output layer.
    logits: u32,
}

impl CudaBackend {
    /// Picks an algorithm for every product that a step may run.
    pub(super) fn plan_products(&mut self) -> Result<(), CudaError> {
        let b = &self.buffers;
        for &rows in &self.buckets {
            for group in Group::ALL {
                let shape = group_shape(&self.weights, group, rows);
                if is_few(shape) {
                    continue;
                }
                let weights: Vec<DevicePointer> =
                    self.weights.layers.iter().map(|layer| layer.group(group)).collect();
                let x = match (self.weights.precision, group) {
                    (Precision::Fp8, _) => b.x8,
                    (Precision::Bf16, Group::Qkv | Group::GateUp) => b.x,
                    (Precision::Bf16, Group::Output) => b.context,
                    (Precision::Bf16, Group::Down) => b.activation,
                };
                self.gemm.plan(&self.stream, shape, &weights, x, b.y)?;
            }
        }
        for &rows in &self.head_buckets {
            let shape = head_shape(&self.weights, rows);
            if is_few(shape) {
                continue;
            }
            let head = [self.weights.lm_head];
            self.gemm.plan(&self.stream, shape, &head, b.gathered, b.logits)?;
        }
        self.gemm.keep_picks();
        Ok(())
    }

    /// Milliseconds that the products of a step take, all layers, for each bucket of rows, at the clocks of
    /// a card that is busy.
    pub(super) fn time_products(&self) -> Result<Vec<(u32, f32)>, CudaError> {
        let middle = self.buckets[self.buckets.len() / 2];
        self.time_bucket(middle, WARM_UP_MS)?;
        let time = |&bucket: &u32| Ok((bucket, self.time_bucket(bucket, MEASURED_MS)?));
        self.buckets.iter().map(time).collect()
    }

    /// The mean over runs that take about `length` milliseconds together.
    fn time_bucket(&self, bucket: u32, length: f32) -> Result<f32, CudaError> {
        let key = GraphKey { bucket, has_adapters: false, has_chunks: false, logits: 1 };
        let (start, end) = (self.device.event(true)?, self.device.event(true)?);
        let run = |count: u32| {
            self.stream.record(&start)?;
            for _ in 0..count {
                self.forward(key).products()?;
            }
            self.stream.record(&end)?;
            end.synchronize()?;
            Ok::<_, CudaError>(end.milliseconds_since(&start)? / count as f32)
        };
        run((length / run(1)?).ceil().max(1.0) as u32)
    }

    /// Launches the step that has been planned; its results go where `pending[index]` says.
    pub(super) fn run(&mut self, index: usize) -> Result<(), CudaError> {
        let (counts, key) = (self.plan.counts, self.key());
        let is_whole = key.bucket <= MAX_GRAPH_ROWS && counts.logit_rows <= LOGIT_ROWS;
        if is_whole {
            self.replay(key)?;
        } else {
            self.forward(key).run()?;
        }
        for first in (0..counts.logit_rows).step_by(LOGIT_ROWS as usize) {
            let count = (counts.logit_rows - first).min(LOGIT_ROWS);
            if !is_whole {
                self.forward(key).output(first, bucket(&self.head_buckets, count))?;
            }
            self.pending[index].copy_logits(&self.stream, &self.buffers, first, count)?;
        }
        let pending = &mut self.pending[index];
        pending.copy_draws(&self.stream, &self.buffers)?;
        pending.record(&self.stream)
    }

    /// Of the step that has been planned.
    pub(super) fn key(&self) -> GraphKey {
        let counts = self.plan.counts;
        GraphKey {
            bucket: bucket(&self.buckets, counts.rows),
            has_adapters: counts.first_adapted_tile < counts.tiles,
            has_chunks: counts.attention_items > 0,
            // More are computed in several rounds, behind the graph.
            logits: bucket(&self.head_buckets, counts.logit_rows.min(LOGIT_ROWS)),
        }
    }

    /// Records a step of this kind.
    pub(super) fn record(&self, key: GraphKey, left_out: Option<Part>) -> Result<Graph, CudaError> {
        let forward = Forward { left_out, ..self.forward(key) };
        Graph::record(&self.device, &self.stream, || {
            forward.run()?;
            forward.output(0, key.logits)
        })
    }

    /// Launches the graph of a step, recorded when its like first comes.
    fn replay(&mut self, key: GraphKey) -> Result<(), CudaError> {
        self.replays += 1;
        if let Some(graph) = self.graphs.get(&key) {
            return graph.launch(&self.stream);
        }
        let graph = self.record(key, None)?;
        graph.launch(&self.stream)?;
        self.recordings += 1;
        self.graphs.insert(key, graph);
        Ok(())
    }

    fn forward(&self, key: GraphKey) -> Forward<'_> {
        Forward {
            kernels: &self.kernels,
            gemm: &self.gemm,
            weights: &self.weights,
            buffers: &self.buffers,
            plan: self.plan_memory.addresses(),
            bucket: key.bucket,
            has_adapters: key.has_adapters,
            has_chunks: key.has_chunks,
            kv: self.arena.address(),
            stream: &self.stream,
            left_out: None,
        }
    }
}

/// The smallest bucket that holds the rows; the last one holds the largest step.
fn bucket(buckets: &[u32], rows: u32) -> u32 {
    buckets.iter().copied().find(|&bucket| bucket >= rows).unwrap_or(rows)
}
