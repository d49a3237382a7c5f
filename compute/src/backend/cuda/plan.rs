//! A step as the kernels want it: rows sorted by adapter, cut into tiles; the attention as a list of
//! items; the rows whose logits are wanted.

use super::device::DevicePointer;
use super::layout::{
    AttentionItem, BLOCK_TOKENS, COPIED, DRAWN, DecodeItem, Draw, Edit, NO_LOGPROBS, Row, SCORED,
    StepCounts, TILE_ROWS, TOP_LOGPROBS, Tile,
};
use crate::backend::batch::SequenceId;
use crate::backend::{
    AdapterSlot, BackendError, Input, LogitsWanted, SampleRequest, SequenceStep, StepBatch,
};
use crate::sampling::{LogitEdit, TokenMask};
use lorikeet_contract::BaseModelSpec;

/// Parts of contexts that a step may be cut into; longer parts beyond.
pub const MAX_PARTIALS: u32 = 4096;
/// Parts of a single row's context are multiples of this: a block for each of four warps.
const SPLIT_TOKENS: u32 = 64;
/// The most that the longest context is cut into.
const MOST_PARTS: u32 = 32;
/// What a part takes beyond its tokens, in tokens.
const PART_OVERHEAD: u32 = 64;
/// Shorter chunks are taken row by row: a warp would otherwise walk through their context alone.
const SINGLE_ROWS: u32 = 16;
/// Rows of the matrix instructions of a prefill item: one tile for each of four warps.
const PREFILL_ROWS: u32 = 4 * TILE_ROWS;
/// Thread blocks of the single rows' attention that a multiprocessor holds.
pub const ATTENTION_BLOCKS: u32 = 4;

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
    pub score: bool,
}

/// Reused from step to step.
#[derive(Debug, Default)]
pub struct StepPlan {
    pub counts: StepCounts,
    pub rows: Vec<Row>,
    pub tiles: Vec<Tile>,
    pub attention: Vec<AttentionItem>,
    pub decode: Vec<DecodeItem>,
    pub blocks: Vec<u32>,
    /// Row of each logit, and what is done with it.
    pub logit_rows: Vec<u32>,
    pub draws: Vec<Draw>,
    pub edits: Vec<Edit>,
    /// A bit for each token of the vocabulary, row by row of those that are masked.
    pub masks: Vec<u32>,
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
        let split = split_tokens(batch, limits);
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
            self.add_logits(sequence, index, first, limits.spec.vocab_size);
        }
        self.count();
        Ok(())
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.tiles.clear();
        self.attention.clear();
        self.decode.clear();
        self.blocks.clear();
        self.logit_rows.clear();
        self.draws.clear();
        self.edits.clear();
        self.masks.clear();
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

    /// Fills the last tile if it is of the same adapter, then begins new ones. Those of the base model
    /// alone share no reads of an adapter, so that they are short, for more thread blocks to work on.
    fn add_tiles(&mut self, first: u32, adapter: DevicePointer) {
        let end = self.rows.len() as u32;
        let most = if adapter == 0 { TILE_ROWS / 2 } else { TILE_ROWS };
        let mut row = first;
        if let Some(tile) = self.tiles.last_mut().filter(|t| t.adapter == adapter) {
            let more = (most - tile.rows).min(end - row);
            tile.rows += more;
            row += more;
        }
        while row < end {
            let rows = most.min(end - row);
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
        if rows <= SINGLE_ROWS {
            for offset in 0..rows {
                self.add_decode(first + offset, sequence.position + offset + 1, blocks, split);
            }
            return;
        }
        let tokens = PREFILL_ROWS / (spec.num_heads / spec.num_kv_heads);
        for start in (0..rows).step_by(tokens as usize) {
            self.attention.push(AttentionItem {
                first_row: first + start,
                rows: tokens.min(rows - start),
                position: sequence.position + start,
                blocks,
            });
        }
    }

    fn add_decode(&mut self, row: u32, kv_end: u32, blocks: u32, split: u32) {
        let partials = kv_end.div_ceil(split);
        let last = self.decode.last();
        let first_partial = last.map_or(0, |item| item.first_partial + item.partials);
        let counter = last.map_or(0, |item| item.counter + 1);
        for part in 0..partials {
            self.decode.push(DecodeItem {
                row,
                blocks,
                kv_start: part * split,
                kv_end: ((part + 1) * split).min(kv_end),
                partial: first_partial + part,
                first_partial,
                partials,
                counter,
                position: kv_end - 1,
            });
        }
    }

    fn add_logits(&mut self, sequence: &SequenceStep, index: usize, first: u32, vocabulary: u32) {
        let last = self.rows.len() as u32 - 1;
        let wanted = sequence.logits;
        let from = match wanted {
            LogitsWanted::All | LogitsWanted::Scores { .. } => first,
            LogitsWanted::None | LogitsWanted::Last => last,
        };
        for row in from..=last {
            let is_last = row == last;
            let request = sequence.sample.as_ref().filter(|_| is_last);
            let (copy, score) = match wanted {
                LogitsWanted::None => (false, None),
                LogitsWanted::Last => (is_last, None),
                LogitsWanted::All => (true, None),
                LogitsWanted::Scores { top, next } => {
                    // Only the last row's token may be one that the step before draws.
                    let following = || self.rows[row as usize + 1].token as u32;
                    let token = if is_last { next } else { Some(following()) };
                    (false, token.map(|token| (token, top)))
                }
            };
            let draw = match (request, score) {
                (Some(request), _) => self.draw(request, vocabulary),
                (None, Some((token, top))) => scored(token, top),
                (None, None) if copy => Draw { wanted: COPIED, ..Draw::default() },
                (None, None) => continue,
            };
            self.logit_rows.push(row);
            self.draws.push(draw);
            let (sample, score) = (request.is_some(), score.is_some());
            self.logits.push(LogitRow { sequence: index, sample, copy, score });
        }
    }

    fn draw(&mut self, request: &SampleRequest, vocabulary: u32) -> Draw {
        let first_edit = self.edits.len() as u32;
        self.edits.extend(request.edits.iter().filter(|e| e.token < vocabulary).map(edit));
        let edits = self.edits.len() as u32 - first_edit;
        let mask =
            request.allowed.as_deref().map_or(0, |allowed| self.add_mask(allowed, vocabulary));
        let params = &request.params;
        Draw {
            seed: params.seed,
            temperature: params.temperature,
            top_p: params.top_p,
            min_p: params.min_p,
            top_k: params.top_k,
            output_index: request.output_index,
            logprobs: request.logprobs.map_or(NO_LOGPROBS, most_logprobs),
            wanted: DRAWN,
            first_edit,
            edits,
            mask,
            ..Draw::default()
        }
    }

    /// 1 + the place of the mask.
    fn add_mask(&mut self, allowed: &TokenMask, vocabulary: u32) -> u32 {
        let each = vocabulary.div_ceil(32) as usize;
        let end = self.masks.len() + each;
        self.masks.extend(allowed.words().iter().take(each));
        // What is beyond a mask's end is not in it.
        self.masks.resize(end, 0);
        (end / each) as u32
    }

    fn count(&mut self) {
        let adapted = self.tiles.iter().position(|t| t.adapter != 0);
        self.counts = StepCounts {
            rows: self.rows.len() as u32,
            tiles: self.tiles.len() as u32,
            first_adapted_tile: adapted.unwrap_or(self.tiles.len()) as u32,
            attention_items: self.attention.len() as u32,
            decode_items: self.decode.len() as u32,
            logit_rows: self.logit_rows.len() as u32,
        };
    }
}

/// Length of the parts that contexts are cut into. All parts together take as many rounds as the
/// device needs for them, each as long as a part: the shortest is best, as far as [`MAX_PARTIALS`]
/// allows it.
fn split_tokens(batch: &StepBatch, limits: &Limits) -> u32 {
    let rows = |s: &SequenceStep| s.input.rows() as u32;
    let single = || batch.sequences.iter().filter(|s| rows(s) <= SINGLE_ROWS);
    let least: u32 = single().map(rows).sum();
    let longest = single().map(|s| s.position + rows(s)).max().unwrap_or(1);
    let at_once = limits.multiprocessors * ATTENTION_BLOCKS / limits.spec.num_kv_heads;
    let cost = |split: u32| {
        let parts: u32 = single().map(|s| rows(s) * (s.position + rows(s)).div_ceil(split)).sum();
        let rounds = parts.div_ceil(at_once.max(1));
        (parts > MAX_PARTIALS.max(least), u64::from(rounds) * u64::from(split + PART_OVERHEAD))
    };
    let splits =
        (1..=MOST_PARTS).map(|parts| longest.div_ceil(parts).next_multiple_of(SPLIT_TOKENS));
    splits.min_by_key(|&split| cost(split)).unwrap_or(longest)
}

fn scored(token: u32, top: u8) -> Draw {
    Draw { wanted: SCORED, scored: token, logprobs: most_logprobs(top), ..Draw::default() }
}

fn most_logprobs(wanted: u8) -> u32 {
    u32::from(wanted).min(TOP_LOGPROBS)
}

fn edit(edit: &LogitEdit) -> Edit {
    Edit { token: edit.token, divisor: edit.divisor, add: edit.add, saved: 0.0 }
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
    if let LogitsWanted::Scores { next: Some(next), .. } = sequence.logits {
        if sequence.sample.is_some() {
            return refuse(sequence, "the token behind its last one is given and drawn".into());
        }
        if next >= limits.spec.vocab_size {
            return refuse(sequence, format!("token {next} is not in the vocabulary"));
        }
    }
    Ok(())
}

/// The engine broke the batch's contract: it must not go on as if nothing had happened.
fn refuse<R>(sequence: &SequenceStep, what: String) -> Result<R, BackendError> {
    Err(BackendError::Device(format!("sequence {}: {what}", sequence.sequence.0)))
}
