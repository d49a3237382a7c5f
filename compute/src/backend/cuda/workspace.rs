//! Device memory of a step, allocated once for the largest one: activations, and the plan.

use super::device::{Cursor, Device, DeviceMemory, DevicePointer, PinnedMemory, Stream};
use super::error::CudaError;
use super::kernels::{CopyPlan, Kernel, Kernels, PLAN_PARTS, PlanParts, Start};
use super::layout::{
    AttentionItem, DecodeItem, Draw, Edit, Group, Row, StepCounts, TOP_LOGPROBS, Tile, Z_STRIDE,
};
use super::plan::{MAX_PARTIALS, StepPlan};
use crate::backend::HostBuffer;
use lorikeet_contract::BaseModelSpec;
use std::sync::Arc;

/// Rows that go through the output layer together: bounds the memory for logits.
pub const LOGIT_ROWS: u32 = 256;

/// Edits of logits that there is room for at first.
const FIRST_EDITS: u64 = 4096;
/// Words of masks that there is room for at first: 64 rows of a vocabulary of 131,072.
const FIRST_MASK_WORDS: u64 = 1 << 18;

/// Activations.
pub struct Buffers {
    /// f32, the residual stream.
    pub hidden: DevicePointer,
    /// Normalised rows, input of q,k,v and gate,up.
    pub x: DevicePointer,
    /// The input of a product in e4m3, with a scale for each row.
    pub x8: DevicePointer,
    pub x_scales: DevicePointer,
    /// Output of a group's product.
    pub y: DevicePointer,
    /// `A x` of each row's adapter.
    pub z: DevicePointer,
    pub queries: DevicePointer,
    pub context: DevicePointer,
    pub activation: DevicePointer,
    /// f32 results of parts of contexts, with their maxima and sums.
    pub partial_out: DevicePointer,
    pub partial_sums: DevicePointer,
    /// How many parts of a row's context are there, for each key head.
    pub finished_parts: DevicePointer,
    /// Which of the single rows' contexts are taken, where their attention runs beside that of chunks.
    pub queue: DevicePointer,
    /// Rows whose logits are wanted, and the logits of [`LOGIT_ROWS`] of them.
    pub gathered: DevicePointer,
    pub logits: DevicePointer,
    /// What was drawn, one for each row of logits.
    pub tokens: DevicePointer,
    pub logprobs: DevicePointer,
    pub top_ids: DevicePointer,
    pub top_logprobs: DevicePointer,
    _memory: Option<DeviceMemory>,
}

impl Buffers {
    pub fn new(
        device: &Arc<Device>,
        spec: &BaseModelSpec,
        max_rows: u32,
    ) -> Result<Self, CudaError> {
        // Once without memory, to learn how much is needed.
        let mut dry = Cursor { next: 0 };
        Self::take(&mut dry, spec, max_rows);
        let memory = device.allocate("device memory for activations", dry.next)?;
        let buffers = Self::take(&mut Cursor { next: memory.address() }, spec, max_rows);
        Ok(Self { _memory: Some(memory), ..buffers })
    }

    fn take(cursor: &mut Cursor, spec: &BaseModelSpec, max_rows: u32) -> Self {
        let rows = u64::from(max_rows);
        let hidden = u64::from(spec.hidden_size);
        let queries = u64::from(spec.num_heads * spec.head_dim);
        let widest = Group::ALL.iter().map(|g| u64::from(g.shape(spec).0)).max().unwrap_or(0);
        let longest = Group::ALL.iter().map(|g| u64::from(g.shape(spec).1)).max().unwrap_or(0);
        let parts = u64::from(MAX_PARTIALS.max(max_rows)) * u64::from(spec.num_heads);
        let logit_rows = u64::from(LOGIT_ROWS.min(max_rows));
        let top = rows * u64::from(TOP_LOGPROBS);
        let mut take = |count: u64, size: u64| cursor.take(count * size);
        Self {
            hidden: take(rows * hidden, 4),
            x: take(rows * hidden, 2),
            x8: take(rows * longest, 1),
            x_scales: take(rows, 4),
            y: take(rows * widest, 2),
            z: take(rows * u64::from(Z_STRIDE), 2),
            queries: take(rows * queries, 2),
            context: take(rows * queries, 2),
            activation: take(rows * u64::from(spec.intermediate_size), 2),
            partial_out: take(parts * u64::from(spec.head_dim), 4),
            partial_sums: take(parts, 8),
            finished_parts: take(rows * u64::from(spec.num_kv_heads), 4),
            queue: take(1, 8),
            gathered: take(logit_rows * hidden, 2),
            logits: take(logit_rows * u64::from(spec.vocab_size), 4),
            tokens: take(rows, 4),
            logprobs: take(rows, 4),
            top_ids: take(top, 4),
            top_logprobs: take(top, 4),
            _memory: None,
        }
    }
}

/// A plan's place on the device, with pinned memory that it is copied from.
pub struct PlanMemory {
    device: Arc<Device>,
    sections: Sections,
    memory: DeviceMemory,
    /// One for each step that may be under way, so that a plan is not overwritten while it is copied.
    staging: Vec<PinnedMemory>,
}

/// Offsets in bytes.
#[derive(Debug, Clone, Copy)]
struct Sections {
    rows: u64,
    tiles: u64,
    attention: u64,
    decode: u64,
    logit_rows: u64,
    draws: u64,
    edits: u64,
    masks: u64,
    blocks: u64,
    end: u64,
}

/// What is not bounded by the rows of a step: entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lists {
    edits: u64,
    mask_words: u64,
    blocks: u64,
}

impl Sections {
    fn new(max_rows: u32, lists: Lists) -> Self {
        let rows = u64::from(max_rows);
        let mut next = size_of::<StepCounts>() as u64;
        let mut section = |count: u64, size: usize| {
            let start = next.next_multiple_of(64);
            next = start + count * size as u64;
            start
        };
        Self {
            rows: section(rows, size_of::<Row>()),
            tiles: section(rows, size_of::<Tile>()),
            attention: section(rows, size_of::<AttentionItem>()),
            decode: section(rows + u64::from(MAX_PARTIALS), size_of::<DecodeItem>()),
            logit_rows: section(rows, 4),
            draws: section(rows, size_of::<Draw>()),
            edits: section(lists.edits, size_of::<Edit>()),
            masks: section(lists.mask_words, 4),
            blocks: section(lists.blocks, 4),
            end: section(0, 1),
        }
    }

    fn lists(&self) -> Lists {
        Lists {
            edits: (self.masks - self.edits) / size_of::<Edit>() as u64,
            mask_words: (self.blocks - self.masks) / 4,
            blocks: (self.end - self.blocks) / 4,
        }
    }
}

/// A plan's addresses on the device.
#[derive(Debug, Clone, Copy)]
pub struct PlanAddresses {
    pub counts: DevicePointer,
    pub rows: DevicePointer,
    pub tiles: DevicePointer,
    pub attention: DevicePointer,
    pub decode: DevicePointer,
    pub logit_rows: DevicePointer,
    pub draws: DevicePointer,
    pub edits: DevicePointer,
    pub masks: DevicePointer,
    pub blocks: DevicePointer,
}

impl PlanMemory {
    pub fn new(
        device: &Arc<Device>,
        max_rows: u32,
        num_blocks: u32,
        depth: usize,
    ) -> Result<Self, CudaError> {
        // Sequences may share blocks, so that there may be more entries than blocks: then it grows.
        let blocks = u64::from(num_blocks) + u64::from(max_rows);
        let lists = Lists { edits: FIRST_EDITS, mask_words: FIRST_MASK_WORDS, blocks };
        let sections = Sections::new(max_rows, lists);
        Self::with_sections(device, sections, depth)
    }

    fn with_sections(
        device: &Arc<Device>,
        sections: Sections,
        depth: usize,
    ) -> Result<Self, CudaError> {
        let pinned = |_| device.pinned(sections.end as usize);
        Ok(Self {
            device: device.clone(),
            sections,
            memory: device.allocate("device memory for a step's plan", sections.end)?,
            staging: (0..depth).map(pinned).collect::<Result<_, _>>()?,
        })
    }

    /// Makes room for a plan's edits, masks and block table; true when all addresses have changed. Rare:
    /// waits for the device.
    pub fn reserve(
        &mut self,
        stream: &Stream,
        plan: &StepPlan,
        max_rows: u32,
    ) -> Result<bool, CudaError> {
        let have = self.sections.lists();
        let grown = |needed: usize, have: u64| {
            let needed = needed as u64;
            if needed > have { needed * 2 } else { have }
        };
        let lists = Lists {
            edits: grown(plan.edits.len(), have.edits),
            mask_words: grown(plan.masks.len(), have.mask_words),
            blocks: grown(plan.blocks.len(), have.blocks),
        };
        if lists == have {
            return Ok(false);
        }
        stream.synchronize()?;
        let sections = Sections::new(max_rows, lists);
        *self = Self::with_sections(&self.device, sections, self.staging.len())?;
        Ok(true)
    }

    pub fn addresses(&self) -> PlanAddresses {
        let first = self.memory.address();
        PlanAddresses {
            counts: first,
            rows: first + self.sections.rows,
            tiles: first + self.sections.tiles,
            attention: first + self.sections.attention,
            decode: first + self.sections.decode,
            logit_rows: first + self.sections.logit_rows,
            draws: first + self.sections.draws,
            edits: first + self.sections.edits,
            masks: first + self.sections.masks,
            blocks: first + self.sections.blocks,
        }
    }

    /// Copies a plan that fits, through the staging memory `index`, which no copy under way reads.
    pub fn upload(
        &mut self,
        stream: &Stream,
        kernels: &Kernels,
        plan: &StepPlan,
        index: usize,
    ) -> Result<(), CudaError> {
        let sections = self.sections;
        let sources: [(u64, &[u8]); PLAN_PARTS] = [
            (0, bytemuck::bytes_of(&plan.counts)),
            (sections.rows, bytemuck::cast_slice(&plan.rows)),
            (sections.tiles, bytemuck::cast_slice(&plan.tiles)),
            (sections.attention, bytemuck::cast_slice(&plan.attention)),
            (sections.decode, bytemuck::cast_slice(&plan.decode)),
            (sections.logit_rows, bytemuck::cast_slice(&plan.logit_rows)),
            (sections.draws, bytemuck::cast_slice(&plan.draws)),
            (sections.edits, bytemuck::cast_slice(&plan.edits)),
            (sections.masks, bytemuck::cast_slice(&plan.masks)),
            (sections.blocks, bytemuck::cast_slice(&plan.blocks)),
        ];
        let staging = &mut self.staging[index];
        let mut parts = PlanParts::default();
        for (part, (offset, bytes)) in sources.into_iter().enumerate() {
            staging.as_mut_slice()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            // Sections begin at multiples of 64.
            parts.first[part] = (offset / 16) as u32;
            parts.count[part] = bytes.len().div_ceil(16) as u32;
        }
        let units = parts.count.iter().sum::<u32>();
        let (to, from) = (self.memory.address(), staging.device_address());
        let copy = CopyPlan { to, from, parts, units };
        let blocks = kernels.blocks(units.div_ceil(CopyPlan::THREADS), 1);
        // SAFETY: both memories have the same sections, and the staging memory is left alone until the
        // step that reads the plan has been collected.
        unsafe { kernels.launch(stream, Start::Afterwards, blocks, &copy) }
    }
}
