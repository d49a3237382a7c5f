//! Attention over paged keys and values: the query heads that share a key head go through the
//! kernel together, block by block.

use super::element::Element;
use super::forward::Step;
use super::kernel::{PANEL, Write};
use super::kv::{BLOCK_TOKENS, HeadBlock};
use super::memory::Memory;
use super::model::PackedModel;
use super::pack::{Rows, multiply_panel};
use super::plan::{AttentionTask, TASK_TOKENS};
use super::pool::Member;
use super::shared::Columns;
use super::vector;
use std::ops::Range;

/// One thread's scores and weights for the longest context, and its sums.
pub struct AttentionScratch<T> {
    scores: Vec<f32>,
    weights: Memory<T>,
    sums: Vec<f32>,
    context: Vec<f32>,
}

impl<T: Element> AttentionScratch<T> {
    pub fn new(model: &PackedModel<T>, num_blocks: usize) -> Self {
        let context = model.spec.context_length as usize;
        let longest = context.next_multiple_of(BLOCK_TOKENS).min(num_blocks * BLOCK_TOKENS);
        let queries = TASK_TOKENS * model.query_width() / model.kv_heads() / model.head_dim();
        Self {
            scores: vec![0.0; queries * longest],
            weights: Memory::zeroed(queries * longest),
            sums: vec![0.0; queries],
            context: vec![0.0; queries * model.head_dim()],
        }
    }
}

/// The blocks of a sequence that some of its rows see in one layer.
struct Span<'a> {
    layer: usize,
    head: usize,
    window: Option<usize>,
    /// Position of the first block's first token.
    first_token: usize,
    blocks: &'a [u32],
}

impl Span<'_> {
    fn tokens(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }

    fn blocks(&self) -> impl Iterator<Item = HeadBlock> {
        let (layer, head) = (self.layer, self.head);
        self.blocks.iter().map(move |&block| HeadBlock { layer, block, head })
    }
}

impl<T: Element> Step<'_, T> {
    /// Each thread computes the tasks that the plan gave it.
    pub fn attend(&self, member: Member, layer: usize, scratch: &mut AttentionScratch<T>) {
        for task in self.plan.tasks.iter().filter(|task| task.thread == member.thread) {
            let span = self.span(task, layer);
            self.score(task, &span, scratch);
            self.weigh(task, &span, scratch);
            self.mix(task, &span, scratch);
            self.store_context(task, scratch);
        }
    }

    /// What the task's rows see of the cache in a layer.
    fn span(&self, task: &AttentionTask, layer: usize) -> Span<'_> {
        let window = self.model.layers[layer].window;
        let blocks = &self.plan.blocks[task.blocks.clone()];
        let first_block = self.first_seen(task.rows.start, window) / BLOCK_TOKENS;
        Span {
            layer,
            head: task.head,
            window,
            first_token: first_block * BLOCK_TOKENS,
            blocks: &blocks[first_block..],
        }
    }

    fn first_seen(&self, row: usize, window: Option<usize>) -> usize {
        let seen = self.plan.rows[row].position + 1;
        window.map_or(0, |window| seen.saturating_sub(window))
    }

    /// Query heads that share one key head.
    fn sharing(&self) -> usize {
        self.model.query_width() / self.model.kv_heads() / self.model.head_dim()
    }

    /// `scores[query][token] = q . K`
    fn score(&self, task: &AttentionTask, span: &Span, scratch: &mut AttentionScratch<T>) {
        let (dim, sharing) = (self.model.head_dim(), self.sharing());
        let count = task.rows.len() * sharing;
        let start = (task.head * self.plan.rows.len() + task.rows.start) * sharing * dim;
        // SAFETY: written in an earlier phase.
        let data = unsafe { self.buffers.query.read(start..start + count * dim) };
        let queries = Rows { data, stride: dim, count };
        let stride = span.tokens();
        let mut scores = Columns::of(&mut scratch.scores[..count * stride], stride);
        let mut blocks = span.blocks().peekable();
        let mut column = 0;
        while let Some(block) = blocks.next() {
            // SAFETY: written in an earlier phase.
            let keys = unsafe { self.kv.keys(block) };
            let next: &[T] = match blocks.peek() {
                // SAFETY: as above.
                Some(&next) => unsafe { self.kv.keys(next) }.data,
                None => &[],
            };
            let mut out = scores.part(0..count, column);
            multiply_panel(self.isa, queries, keys, &mut out, Write::Store, next);
            column += BLOCK_TOKENS;
        }
    }

    /// Scores to weights, not yet divided by their sum; zero for tokens that the query does not see.
    fn weigh(&self, task: &AttentionTask, span: &Span, scratch: &mut AttentionScratch<T>) {
        let (sharing, stride) = (self.sharing(), span.tokens());
        for (index, row) in task.rows.clone().enumerate() {
            let first = self.first_seen(row, span.window) - span.first_token;
            let seen = first..self.plan.rows[row].position + 1 - span.first_token;
            for query in index * sharing..(index + 1) * sharing {
                let columns = query * stride..(query + 1) * stride;
                let scores = &mut scratch.scores[columns.clone()][seen.clone()];
                let weights = &mut scratch.weights.as_mut_slice()[columns];
                weights[..seen.start].fill(T::from_f32(0.0));
                weights[seen.end..].fill(T::from_f32(0.0));
                let weights = &mut weights[seen.clone()];
                scratch.sums[query] = self.isa.run(|| vector::exp_weights(scores, weights));
            }
        }
    }

    /// `context[query] = weights . V`, block by block in order.
    fn mix(&self, task: &AttentionTask, span: &Span, scratch: &mut AttentionScratch<T>) {
        let dim = self.model.head_dim();
        let count = task.rows.len() * self.sharing();
        let stride = span.tokens();
        let seen = self.plan.rows[task.rows.end - 1].position + 1 - span.first_token;
        let mut context = Columns::of(&mut scratch.context[..count * dim], dim);
        for (index, block) in span.blocks().enumerate() {
            let first = index * BLOCK_TOKENS;
            let tokens = (seen - first).min(BLOCK_TOKENS);
            let data = &scratch.weights.as_slice()[first..count * stride];
            let weights = Rows { data, stride, count };
            let write = if index == 0 { Write::Store } else { Write::Add(1.0) };
            for panel in 0..dim.div_ceil(PANEL) {
                // SAFETY: written in an earlier phase.
                let values = unsafe { self.kv.values(block, panel, tokens) };
                let mut out = context.part(0..count, panel * PANEL);
                multiply_panel(self.isa, weights, values, &mut out, write, &[]);
            }
        }
    }

    fn store_context(&self, task: &AttentionTask, scratch: &AttentionScratch<T>) {
        let (dim, width) = (self.model.head_dim(), self.model.query_width());
        let sharing = self.sharing();
        let head = |row: usize| -> Range<usize> {
            let start = row * width + task.head * sharing * dim;
            start..start + sharing * dim
        };
        let queries = scratch.context.chunks_exact(dim).zip(&scratch.sums);
        let mut queries = queries.take(task.rows.len() * sharing);
        for row in task.rows.clone() {
            // SAFETY: this task's rows and heads, and the task is this thread's.
            let out = unsafe { self.buffers.context.write(head(row)) };
            for (out, (context, sum)) in out.chunks_exact_mut(dim).zip(&mut queries) {
                self.isa.run(|| vector::scaled(context, 1.0 / sum, out));
            }
        }
    }
}
