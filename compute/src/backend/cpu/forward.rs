//! One forward pass of a decoder, run by all threads together.
//!
//! Phases alternate. *Column* phases (the linears) give each thread some outputs of all rows;
//! *row* phases (everything else) give each thread all of some rows. Between two phases stands a
//! barrier: a phase reads only what earlier phases wrote, and its threads write disjoint parts.
//! That is what the `SAFETY` comments here mean by "this thread's".

use super::attention::AttentionScratch;
use super::element::Element;
use super::kernel::{Isa, PANEL, Write};
use super::kv::{BLOCK_TOKENS, HeadBlock, KvCache};
use super::model::PackedModel;
use super::pack::{Packed, Rows};
use super::plan::{StepPlan, least};
use super::pool::Member;
use super::shared::{Columns, Shared};
use super::vector;
use crate::backend::group::Group;
use std::ops::Range;

/// Rows of a shrink computed at a time: bounds a thread's scratch.
const SHRINK_ROWS: usize = 64;

/// Activations of a step, allocated once for the largest one.
pub struct Buffers<T> {
    pub hidden: Shared<f32>,
    /// Normalised rows: input of q,k,v and gate,up, and of the output layer.
    pub x: Shared<T>,
    /// Output of the linears, before it is consumed by the next row phase.
    pub y: Shared<f32>,
    /// `A x`, `ranks` per row.
    z: Shared<T>,
    z_stride: usize,
    /// `kv head, row, query head of the group`
    pub query: Shared<T>,
    pub context: Shared<T>,
    pub activation: Shared<T>,
    max_rows: usize,
}

/// One thread's own memory.
pub struct Scratch<T> {
    attention: AttentionScratch<T>,
    shrink: Vec<f32>,
    loads: Vec<usize>,
}

pub struct Step<'a, T> {
    pub model: &'a PackedModel<T>,
    pub plan: &'a StepPlan<T>,
    pub buffers: &'a Buffers<T>,
    pub kv: &'a KvCache<T>,
    pub isa: Isa,
}

impl<T: Element> Buffers<T> {
    pub fn new(model: &PackedModel<T>, max_rows: usize) -> Self {
        let (hidden, inter) = (model.hidden(), model.intermediate());
        let widest = model
            .layers
            .iter()
            .flat_map(|layer| Group::ALL.iter().map(|&group| layer.group(group).outputs()));
        let queries = model.query_width();
        Self {
            hidden: Shared::zeroed(max_rows * hidden),
            x: Shared::zeroed(max_rows * hidden),
            y: Shared::zeroed(max_rows * widest.max().unwrap_or(0)),
            z: Shared::zeroed(0),
            z_stride: 0,
            query: Shared::zeroed(max_rows * queries),
            context: Shared::zeroed(max_rows * queries),
            activation: Shared::zeroed(max_rows * inter),
            max_rows,
        }
    }

    /// Makes room for adapters of this many ranks; grows when a larger one first appears.
    pub fn reserve_ranks(&mut self, ranks: usize) {
        if ranks > self.z_stride {
            self.z_stride = ranks;
            self.z = Shared::zeroed(self.max_rows * ranks);
        }
    }
}

impl<T: Element> Scratch<T> {
    pub fn new(model: &PackedModel<T>, num_blocks: usize) -> Self {
        Self {
            attention: AttentionScratch::new(model, num_blocks),
            shrink: vec![0.0; SHRINK_ROWS * PANEL],
            loads: Vec::new(),
        }
    }
}

impl<T: Element> Step<'_, T> {
    /// Leaves the rows, after the last norm, in `buffers.x`.
    pub fn run(&self, member: Member, scratch: &mut Scratch<T>) {
        let rows = member.share(self.plan.rows.len());
        self.embed(rows.clone());
        member.wait();
        for (index, layer) in self.model.layers.iter().enumerate() {
            self.project(member, index, Group::Qkv, &self.buffers.x, scratch);
            member.wait();
            self.adapt_and_bias(index, Group::Qkv, rows.clone());
            self.rotate_and_store(index, rows.clone());
            member.wait();
            self.attend(member, index, &mut scratch.attention);
            member.wait();
            self.project(member, index, Group::Output, &self.buffers.context, scratch);
            member.wait();
            self.adapt_and_bias(index, Group::Output, rows.clone());
            self.add_and_norm(rows.clone(), &layer.post_attention_norm);
            member.wait();
            self.project(member, index, Group::GateUp, &self.buffers.x, scratch);
            member.wait();
            self.adapt_and_bias(index, Group::GateUp, rows.clone());
            self.activate(rows.clone());
            member.wait();
            self.project(member, index, Group::Down, &self.buffers.activation, scratch);
            member.wait();
            self.adapt_and_bias(index, Group::Down, rows.clone());
            let next = self.model.layers.get(index + 1);
            let norm = next.map_or(&self.model.norm, |next| &next.input_norm);
            self.add_and_norm(rows.clone(), norm);
            member.wait();
        }
    }

    fn embed(&self, rows: Range<usize>) {
        let width = self.model.hidden();
        for row in rows {
            // SAFETY: this thread's rows.
            let hidden = unsafe { self.buffers.hidden.write(row * width..(row + 1) * width) };
            self.model.embed(self.plan.rows[row].token, hidden);
            self.norm(row, hidden, &self.model.layers[0].input_norm);
        }
    }

    fn norm(&self, row: usize, hidden: &[f32], weight: &[f32]) {
        let width = hidden.len();
        // SAFETY: called for this thread's rows.
        let x = unsafe { self.buffers.x.write(row * width..(row + 1) * width) };
        self.isa.run(|| vector::rms_norm(hidden, weight, self.model.rms_norm_eps, x));
    }

    /// Column phase: this thread's part of a linear, and of every adapter's way to its ranks.
    fn project(
        &self,
        member: Member,
        layer: usize,
        group: Group,
        input: &Shared<T>,
        scratch: &mut Scratch<T>,
    ) {
        let weights = self.model.layers[layer].group(group);
        let count = self.plan.rows.len();
        // SAFETY: written in an earlier phase.
        let data = unsafe { input.read(0..count * weights.inputs()) };
        let x = Rows { data, stride: weights.inputs(), count };
        self.multiply_share(member, weights, x, &self.buffers.y);
        scratch.loads.clear();
        scratch.loads.resize(member.threads, 0);
        for segment in &self.plan.segments {
            let Some(adapter) = segment.adapter.group(layer, group) else { continue };
            for panel in 0..adapter.a.panels() {
                let columns = adapter.a.panel_outputs(panel);
                let owner = least(&scratch.loads);
                scratch.loads[owner] += columns.len() * segment.rows.len();
                if owner == member.thread {
                    let x = x.slice(segment.rows.clone());
                    self.shrink(&adapter.a, panel, x, segment.rows.start, &mut scratch.shrink);
                }
            }
        }
    }

    /// This thread's panels of `x` times `weights`, into rows of all outputs.
    pub fn multiply_share(
        &self,
        member: Member,
        weights: &Packed<T>,
        x: Rows<T>,
        out: &Shared<f32>,
    ) {
        let panels = member.share(weights.panels());
        if panels.is_empty() {
            return;
        }
        let stride = weights.outputs();
        let columns = panels.start * PANEL..(panels.end * PANEL).min(stride);
        // SAFETY: this thread's columns.
        let mut out = unsafe { out.columns(0..x.count, stride, columns) };
        weights.multiply(self.isa, x, panels, &mut out, Write::Store);
    }

    /// `z[rows][panel] = A x`
    fn shrink(
        &self,
        a: &Packed<T>,
        panel: usize,
        x: Rows<T>,
        first_row: usize,
        scratch: &mut [f32],
    ) {
        let columns = a.panel_outputs(panel);
        for start in (0..x.count).step_by(SHRINK_ROWS) {
            let block = start..(start + SHRINK_ROWS).min(x.count);
            let sums = &mut scratch[..block.len() * PANEL];
            let mut out = Columns::of(sums, PANEL);
            a.multiply(self.isa, x.slice(block.clone()), panel..panel + 1, &mut out, Write::Store);
            for (row, sums) in block.zip(scratch.chunks_exact(PANEL)) {
                let at = (first_row + row) * self.buffers.z_stride;
                // SAFETY: this thread's columns of these rows.
                let z = unsafe { self.buffers.z.write(at + columns.start..at + columns.end) };
                vector::scaled(&sums[..columns.len()], 1.0, z);
            }
        }
    }

    /// Row phase: adds to `y` what the adapters contribute, then the base model's biases, which
    /// DoRA's gains leave alone.
    fn adapt_and_bias(&self, layer: usize, group: Group, rows: Range<usize>) {
        self.adapt(layer, group, rows.clone());
        let Some(bias) = self.model.layers[layer].bias(group) else { return };
        for row in rows {
            let columns = row * bias.len()..(row + 1) * bias.len();
            // SAFETY: this thread's rows.
            let y = unsafe { self.buffers.y.write(columns) };
            self.isa.run(|| vector::add(y, bias));
        }
    }

    fn adapt(&self, layer: usize, group: Group, rows: Range<usize>) {
        let stride = self.model.layers[layer].group(group).outputs();
        for segment in &self.plan.segments {
            let rows = segment.rows.start.max(rows.start)..segment.rows.end.min(rows.end);
            if rows.is_empty() {
                continue;
            }
            let Some(adapter) = segment.adapter.group(layer, group) else { continue };
            let z_stride = self.buffers.z_stride;
            // SAFETY: written in an earlier phase.
            let z = unsafe { self.buffers.z.read(rows.start * z_stride..rows.end * z_stride) };
            for module in &adapter.modules {
                let z =
                    Rows { data: &z[module.ranks.start..], stride: z_stride, count: rows.len() };
                // SAFETY: this thread's rows.
                let mut y =
                    unsafe { self.buffers.y.columns(rows.clone(), stride, module.columns.clone()) };
                let b = &module.b;
                b.multiply(self.isa, z, 0..b.panels(), &mut y, Write::Add(module.scale));
                let Some(gain) = &module.gain else { continue };
                for row in rows.clone() {
                    let at = row * stride;
                    let columns = at + module.columns.start..at + module.columns.end;
                    // SAFETY: this thread's rows.
                    let y = unsafe { self.buffers.y.write(columns) };
                    self.isa.run(|| vector::mul(y, gain));
                }
            }
        }
    }

    /// Row phase: norms of heads, rotary positions, then queries to their buffer, keys and values to
    /// the cache.
    fn rotate_and_store(&self, layer: usize, rows: Range<usize>) {
        let model = self.model;
        let (dim, kv_heads) = (model.head_dim(), model.kv_heads());
        let queries = model.query_width();
        let stride = queries + 2 * kv_heads * dim;
        let per_head = queries / kv_heads;
        let scale = 1.0 / (dim as f32).sqrt();
        let norms = model.layers[layer].head_norms.as_ref();
        let norm = |head: &mut [f32], weight: Option<&Vec<f32>>| {
            if let Some(weight) = weight {
                vector::rms_norm_in_place(head, weight, model.rms_norm_eps);
            }
        };
        for row in rows {
            let at = self.plan.rows[row];
            let (cos, sin) = model.rope.at(at.position);
            // SAFETY: this thread's rows.
            let y = unsafe { self.buffers.y.write(row * stride..(row + 1) * stride) };
            let (q, kv) = y.split_at_mut(queries);
            let (keys, values) = kv.split_at_mut(kv_heads * dim);
            for (head, q) in q.chunks_exact_mut(per_head).enumerate() {
                let start = (head * self.plan.rows.len() + row) * per_head;
                // SAFETY: this thread's rows.
                let out = unsafe { self.buffers.query.write(start..start + per_head) };
                self.isa.run(|| {
                    for q in q.chunks_exact_mut(dim) {
                        norm(q, norms.map(|n| &n.query));
                        vector::rope(q, cos, sin, scale);
                    }
                    vector::scaled(q, 1.0, out);
                });
            }
            let pairs = keys.chunks_exact_mut(dim).zip(values.chunks_exact(dim));
            for (head, (key, value)) in pairs.enumerate() {
                self.isa.run(|| {
                    norm(key, norms.map(|n| &n.key));
                    vector::rope(key, cos, sin, 1.0);
                });
                let place = HeadBlock { layer, block: at.block, head };
                // SAFETY: this thread's token, and none follows it in this step if `last`.
                unsafe { self.kv.write(place, at.position % BLOCK_TOKENS, key, value, at.last) };
            }
        }
    }

    /// Row phase: `hidden += y`, then `x = norm(hidden)`.
    fn add_and_norm(&self, rows: Range<usize>, weight: &[f32]) {
        let width = self.model.hidden();
        for row in rows {
            let columns = row * width..(row + 1) * width;
            // SAFETY: this thread's rows.
            let hidden = unsafe { self.buffers.hidden.write(columns.clone()) };
            // SAFETY: written in an earlier phase, or by this thread.
            let y = unsafe { self.buffers.y.read(columns) };
            self.isa.run(|| vector::add(hidden, y));
            self.norm(row, hidden, weight);
        }
    }

    /// Row phase: `silu(gate) * up`.
    fn activate(&self, rows: Range<usize>) {
        let width = self.model.intermediate();
        for row in rows {
            // SAFETY: written in an earlier phase, or by this thread.
            let y = unsafe { self.buffers.y.read(row * 2 * width..(row + 1) * 2 * width) };
            let (gate, up) = y.split_at(width);
            // SAFETY: this thread's rows.
            let out = unsafe { self.buffers.activation.write(row * width..(row + 1) * width) };
            self.isa.run(|| vector::silu_mul(gate, up, out));
        }
    }
}
