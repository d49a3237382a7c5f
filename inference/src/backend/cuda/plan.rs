//! A step as the kernels want it: rows sorted by adapter, cut into tiles; the attention as a list of
//! items; the rows whose logits are wanted.

use super::device::DevicePointer;
use super::layout::{
    AttentionItem, BLOCK_TOKENS, CombineItem, Draw, Group, NO_LOGPROBS, NOT_SPLIT, Row, StepCounts,
    TILE_ROWS, TOP_LOGPROBS, Tile,
};
use crate::backend::batch::SequenceId;
use crate::backend::{
    AdapterSlot, BackendError, Input, LogitsWanted, SampleRequest, SequenceStep, StepBatch,
};
use lorikeet_contract::BaseModelSpec;

/// Parts of contexts that a step may be cut into; longer parts beyond.
pub const MAX_PARTIALS: u32 = 4096;
/// Tokens of the shortest part that a decode row's context is cut into.
const SPLIT_TOKENS: u32 = 256;
/// Rows of the matrix instructions of a prefill item: one tile for each of four warps.
const PREFILL_ROWS: u32 = 4 * TILE_ROWS;
/// The shrink's slices are multiples of this: 32 inputs for each of four warps.
const SLICE_INPUTS: u32 = 128;
const FULL_TILE_SLICES: u32 = 8;

/// What a plan must respect, constant for a backend.
#[derive(Debug, Clone)]
pub struct Limits {
    pub spec: BaseModelSpec,
    pub max_rows: u32,
    pub num_blocks: u32,
    pub multiprocessors: u32,
}

/// A row whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitRow {
    /// Index into the batch.
    pub sequence: usize,
    pub sample: bool,
    pub copy: bool,
}

/// Reused from step to step.
#[derive(Debug, Default)]
pub struct StepPlan {
    pub counts: StepCounts,
    pub rows: Vec<Row>,
    pub tiles: Vec<Tile>,
    pub attention: Vec<AttentionItem>,
    pub combine: Vec<CombineItem>,
    pub blocks: Vec<u32>,
    /// Row of each logit, and what is done with it.
    pub logit_rows: Vec<u32>,
    pub draws: Vec<Draw>,
    pub logits: Vec<LogitRow>,
    order: Vec<usize>,
}

impl StepPlan {
    /// `extent` gives the address of a slot's adapter, `previous` lists the sequences that the step
    /// before sampled for, in the order of its draws.
    pub fn build(
        &mut self,
        batch: &StepBatch,
        limits: &Limits,
        previous: &[Option<SequenceId>],
        extent: impl Fn(AdapterSlot) -> Result<DevicePointer, BackendError>,
    ) -> Result<(), BackendError> {
        self.clear();
        let split = split_tokens(batch);
        self.order.extend(0..batch.sequences.len());
        self.order.sort_by_key(|&index| batch.sequences[index].adapter);
        for place in 0..self.order.len() {
            let index = self.order[place];
            let sequence = &batch.sequences[index];
            check(sequence, limits)?;
            let first = self.rows.len() as u32;
            if first + sequence.input.rows() as u32 > limits.max_rows {
                let most = limits.max_rows;
                return refuse(sequence, format!("the step has more than {most} rows"));
            }
            self.add_rows(sequence, limits, previous)?;
            let adapter = sequence.adapter.map(&extent).transpose()?;
            self.add_tiles(first, adapter.unwrap_or(0));
            self.add_attention(sequence, first, &limits.spec, split);
            self.add_logits(sequence, index, first);
        }
        self.count(limits);
        Ok(())
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.tiles.clear();
        self.attention.clear();
        self.combine.clear();
        self.blocks.clear();
        self.logit_rows.clear();
        self.draws.clear();
        self.logits.clear();
        self.order.clear();
    }

    fn add_rows(
        &mut self,
        sequence: &SequenceStep,
        limits: &Limits,
        previous: &[Option<SequenceId>],
    ) -> Result<(), BackendError> {
        let mut add = |offset: u32, token: i32| {
            let position = sequence.position + offset;
            let block = sequence.blocks[(position / BLOCK_TOKENS) as usize].0;
            self.rows.push(Row { token, position, block, unused: 0 });
        };
        match &sequence.input {
            Input::Tokens(tokens) => {
                for (offset, &token) in (0..).zip(tokens) {
                    if token >= limits.spec.vocab_size {
                        return refuse(sequence, format!("token {token} is not in the vocabulary"));
                    }
                    add(offset, token as i32);
                }
            }
            Input::PreviousSample => {
                let Some(index) = previous.iter().position(|p| *p == Some(sequence.sequence))
                else {
                    return refuse(sequence, "the step before sampled no token for it".into());
                };
                add(0, -1 - index as i32);
            }
        }
        Ok(())
    }

    /// Fills the last tile if it is of the same adapter, then begins new ones.
    fn add_tiles(&mut self, first: u32, adapter: DevicePointer) {
        let end = self.rows.len() as u32;
        let mut row = first;
        if let Some(tile) = self.tiles.last_mut().filter(|t| t.adapter == adapter) {
            let more = (TILE_ROWS - tile.rows).min(end - row);
            tile.rows += more;
            row += more;
        }
        while row < end {
            let rows = TILE_ROWS.min(end - row);
            self.tiles.push(Tile { adapter, first_row: row, rows });
            row += rows;
        }
    }

    fn add_attention(
        &mut self,
        sequence: &SequenceStep,
        first: u32,
        spec: &BaseModelSpec,
        split: u32,
    ) {
        let blocks = self.blocks.len() as u32;
        self.blocks.extend(sequence.blocks.iter().map(|b| b.0));
        let rows = self.rows.len() as u32 - first;
        let group = spec.num_heads / spec.num_kv_heads;
        let whole = AttentionItem {
            first_row: first,
            rows,
            position: sequence.position,
            blocks,
            kv_start: 0,
            kv_end: sequence.position + rows,
            partial: NOT_SPLIT,
            shared: 1,
        };
        if rows == 1 {
            self.add_decode(whole, split);
        } else if rows * group <= TILE_ROWS {
            self.attention.push(whole);
        } else {
            let tokens = PREFILL_ROWS / group;
            for start in (0..rows).step_by(tokens as usize) {
                let rows = tokens.min(rows - start);
                let position = whole.position + start;
                self.attention.push(AttentionItem {
                    first_row: first + start,
                    rows,
                    position,
                    kv_end: position + rows,
                    shared: 0,
                    ..whole
                });
            }
        }
    }

    fn add_decode(&mut self, whole: AttentionItem, split: u32) {
        let parts = whole.kv_end.div_ceil(split);
        if parts == 1 {
            self.attention.push(whole);
            return;
        }
        let first_partial = self.combine.last().map_or(0, |c| c.first_partial + c.partials);
        for part in 0..parts {
            self.attention.push(AttentionItem {
                kv_start: part * split,
                kv_end: ((part + 1) * split).min(whole.kv_end),
                partial: first_partial + part,
                ..whole
            });
        }
        let row = whole.first_row;
        self.combine.push(CombineItem { row, first_partial, partials: parts, unused: 0 });
    }

    fn add_logits(&mut self, sequence: &SequenceStep, index: usize, first: u32) {
        let last = self.rows.len() as u32 - 1;
        let all = sequence.logits == LogitsWanted::All;
        for row in if all { first } else { last }..=last {
            let is_last = row == last;
            let sample = is_last && sequence.sample.is_some();
            let copy = all || is_last && sequence.logits == LogitsWanted::Last;
            if sample || copy {
                self.logit_rows.push(row);
                self.draws.push(draw(sequence.sample.as_ref().filter(|_| sample)));
                self.logits.push(LogitRow { sequence: index, sample, copy });
            }
        }
    }

    fn count(&mut self, limits: &Limits) {
        let adapted = self.tiles.iter().position(|t| t.adapter != 0);
        let first_adapted_tile = adapted.unwrap_or(self.tiles.len()) as u32;
        let first_adapted_row = adapted.map_or(self.rows.len() as u32, |t| self.tiles[t].first_row);
        let adapted_tiles = self.tiles.len() as u32 - first_adapted_tile;
        let slices = Group::ALL.map(|group| {
            let (_, inputs) = group.shape(&limits.spec);
            let is_full = self.rows.len() as u32 - first_adapted_row > 4 * adapted_tiles;
            slices(inputs, adapted_tiles, is_full, limits.multiprocessors)
        });
        self.counts = StepCounts {
            rows: self.rows.len() as u32,
            tiles: self.tiles.len() as u32,
            first_adapted_tile,
            attention_items: self.attention.len() as u32,
            combine_items: self.combine.len() as u32,
            logit_rows: self.logit_rows.len() as u32,
            slices: slices.map(|(slices, _)| slices),
            slice_length: slices.map(|(_, length)| length),
            first_adapted_row,
            adapted_rows: self.rows.len() as u32 - first_adapted_row,
        };
    }
}

/// Number and length of the shrink's slices: enough items for two thread blocks on each
/// multiprocessor, where there are so many inputs. Full tiles get fewer, because one thread block
/// sums the slices of all their rows.
fn slices(inputs: u32, tiles: u32, is_full: bool, multiprocessors: u32) -> (u32, u32) {
    let most = if is_full { FULL_TILE_SLICES } else { u32::MAX };
    let wanted = (2 * multiprocessors / tiles.max(1)).clamp(1, most);
    let length = inputs.div_ceil(wanted).next_multiple_of(SLICE_INPUTS);
    (inputs.div_ceil(length), length)
}

/// Rows of f32 partial sums that the shrink needs at most: `slices * adapted rows`.
pub fn max_partial_rows(max_rows: u32, multiprocessors: u32) -> u32 {
    max_rows.max(2 * multiprocessors * TILE_ROWS)
}

/// Length of the parts that contexts are cut into: the shortest that keeps within
/// [`MAX_PARTIALS`].
fn split_tokens(batch: &StepBatch) -> u32 {
    let mut split = SPLIT_TOKENS;
    let parts = |split: u32| -> u32 {
        batch.sequences.iter().map(|s| (s.position + 1).div_ceil(split)).sum()
    };
    while parts(split) > MAX_PARTIALS.max(batch.sequences.len() as u32) {
        split *= 2;
    }
    split
}

fn draw(request: Option<&SampleRequest>) -> Draw {
    let Some(request) = request else { return Draw::default() };
    let params = &request.params;
    Draw {
        seed: params.seed,
        temperature: params.temperature,
        top_p: params.top_p,
        min_p: params.min_p,
        top_k: params.top_k,
        output_index: request.output_index,
        logprobs: request.logprobs.map_or(NO_LOGPROBS, |n| u32::from(n).min(TOP_LOGPROBS)),
        wanted: 1,
        unused: 0,
    }
}

fn check(sequence: &SequenceStep, limits: &Limits) -> Result<(), BackendError> {
    let rows = sequence.input.rows();
    if rows == 0 {
        return refuse(sequence, "it has no rows".into());
    }
    let end = sequence.position as usize + rows;
    if end > limits.spec.context_length as usize {
        return refuse(sequence, format!("position {end} is beyond the context length"));
    }
    if end > sequence.blocks.len() * BLOCK_TOKENS as usize {
        return refuse(sequence, "its blocks do not hold its tokens".into());
    }
    if let Some(block) = sequence.blocks.iter().find(|b| b.0 >= limits.num_blocks) {
        return refuse(sequence, format!("block {} does not exist", block.0));
    }
    Ok(())
}

/// The engine broke the batch's contract: it must not go on as if nothing had happened.
fn refuse<R>(sequence: &SequenceStep, what: String) -> Result<R, BackendError> {
    Err(BackendError::Device(format!("sequence {}: {what}", sequence.sequence.0)))
}
