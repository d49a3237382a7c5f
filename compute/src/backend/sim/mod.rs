//! A backend without a model: deterministic tokens, virtual cost. It drives property tests, load
//! tests and `--device sim`.
//!
//! It keeps a shadow of the KV cache and of the adapter slots and treats as a device error what a
//! real device would suffer silently: a block written by two sequences, a prefix that is not the
//! sequence's own, a block that adapters have, a slot that is not live or of another generation, an
//! eviction under a reader.
//! A token is drawn from what the shadow holds, so a mix-up that no check sees shows in the output.

mod clock;
mod ranks;
mod shadow;
mod slots;

use super::{
    AdapterSlot, Backend, BackendError, BlockMove, Capacity, HeapAllocator, HostAdapter,
    HostAllocator, Input, LogitsWanted, SampleRequest, SampledToken, SequenceOutput, SequenceStep,
    StepBatch, StepOutput, StepTicket, UploadDone,
};
use crate::backend::batch::SequenceId;
use lorikeet_contract::AdapterDigest;
use lorikeet_contract::adapter::ArtifactHeader;
use ranks::Ranks;
use shadow::{Shadow, mix};
use slots::Slots;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use clock::SimClock;

/// What things cost on the simulated device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimCost {
    /// Of a step, however small: the base weights are read once.
    pub step: Duration,
    /// Of each row.
    pub row: Duration,
    /// Of each distinct adapter in a step.
    pub adapter: Duration,
    /// Of an upload, which runs beside the steps.
    pub upload: Duration,
}

impl SimCost {
    pub const FREE: Self = Self {
        step: Duration::ZERO,
        row: Duration::ZERO,
        adapter: Duration::ZERO,
        upload: Duration::ZERO,
    };
}

/// What goes wrong, for tests of what follows.
#[derive(Debug, Clone, Default)]
pub struct SimFaults {
    /// Submitting this step panics.
    pub panic_at_step: Option<u64>,
    /// Submitting this step is a device error.
    pub error_at_step: Option<u64>,
    /// Uploads of these adapters fail.
    pub refused: Vec<AdapterDigest>,
    /// Adapter memory has gaps: while another upload is under way, one that would take more than a
    /// half of what is free finds no room in one piece, and no room can be given back to blocks.
    pub fragmented: bool,
}

#[derive(Debug, Clone)]
pub struct SimConfig {
    pub capacity: Capacity,
    pub vocab_size: u32,
    pub seed: u64,
    pub cost: SimCost,
    pub clock: SimClock,
    /// Walks through every sequence's whole prefix in every step.
    pub check_prefixes: bool,
    pub faults: SimFaults,
    /// What every answer begins with, in place of drawn tokens, as far as its grammar lets it.
    pub script: Vec<u32>,
}

impl Default for SimConfig {
    /// About the pace of a small GPU, in real time.
    fn default() -> Self {
        Self {
            capacity: Capacity {
                num_blocks: 4096,
                block_bytes: 0,
                least_blocks: 0,
                block_size: 16,
                adapter_bytes: 1 << 30,
                max_slots: 256,
                max_rows: 2048,
                pipeline_depth: 1,
            },
            vocab_size: 49152,
            seed: 0,
            cost: SimCost {
                step: Duration::from_millis(5),
                row: Duration::from_micros(20),
                adapter: Duration::from_micros(30),
                upload: Duration::from_millis(2),
            },
            clock: SimClock::real(),
            check_prefixes: false,
            faults: SimFaults::default(),
            script: Vec::new(),
        }
    }
}

struct Running {
    output: StepOutput,
    ready_at: Instant,
    slots: Vec<AdapterSlot>,
}

pub struct SimBackend {
    config: SimConfig,
    shadow: Shadow,
    slots: Slots,
    running: VecDeque<Running>,
    /// The device works on the steps one after the other.
    busy_until: Instant,
    /// Drawn by the step submitted last.
    previous: HashMap<SequenceId, u32>,
}

impl SimBackend {
    pub fn new(config: SimConfig) -> Self {
        let Capacity { num_blocks, block_size, adapter_bytes, max_slots, .. } = config.capacity;
        Self {
            shadow: Shadow::new(num_blocks, block_size, config.check_prefixes),
            slots: Slots::new(max_slots, adapter_bytes),
            running: VecDeque::new(),
            busy_until: config.clock.now(),
            previous: HashMap::new(),
            config,
        }
    }

    fn run(
        &mut self,
        step: &SequenceStep,
        drawn: &mut HashMap<SequenceId, u32>,
    ) -> Result<SequenceOutput, String> {
        let adapter = step.adapter.map(|slot| self.slots.live(slot)).transpose()?;
        let previous;
        let tokens = match &step.input {
            Input::Tokens(tokens) => tokens.as_slice(),
            Input::PreviousSample => {
                let token = self.previous.get(&step.sequence);
                previous = [*token.ok_or("no token was drawn by the step before")?];
                &previous
            }
        };
        let state = self.shadow.feed(step, adapter, tokens)?;
        let scores = self.scores(step, tokens)?;
        let sampled = step.sample.as_ref().map(|request| self.draw(state, request));
        if let Some(sampled) = &sampled {
            drawn.insert(step.sequence, sampled.token);
        }
        Ok(SequenceOutput { sequence: step.sequence, sampled, logits: Vec::new(), scores })
    }

    /// The token after a state: the likeliest that is allowed, once the edits are applied.
    fn draw(&self, state: u64, request: &SampleRequest) -> SampledToken {
        let seed = if request.params.temperature > 0.0 { request.params.seed } else { 0 };
        let (vocab, allowed) = (u64::from(self.config.vocab_size), request.allowed.as_deref());
        let ranks = Ranks::new(mix(state ^ self.config.seed, seed), vocab, allowed);
        let scripted = self.config.script.get(request.output_index as usize).copied();
        let scripted = scripted.filter(|token| allowed.is_none_or(|mask| mask.allows(*token)));
        let token = scripted.unwrap_or_else(|| ranks.likeliest(&request.edits, allowed));
        let nth = |rank| (ranks.token(rank), Ranks::logprob(rank));
        SampledToken {
            token,
            logprob: request.logprobs.map(|_| Ranks::logprob(ranks.rank(token))),
            top_logprobs: (0..request.logprobs.unwrap_or(0).into()).map(nth).collect(),
        }
    }

    /// Of what stands behind each input token.
    fn scores(&self, step: &SequenceStep, tokens: &[u32]) -> Result<Vec<SampledToken>, String> {
        let LogitsWanted::Scores { top, next } = step.logits else { return Ok(Vec::new()) };
        let behind = tokens.iter().skip(1).copied().chain(next);
        let scored = behind.enumerate().map(|(row, token)| {
            let state = self.shadow.state(step, step.position as usize + row)?;
            let vocab = u64::from(self.config.vocab_size);
            let ranks = Ranks::new(mix(state ^ self.config.seed, 0), vocab, None);
            let nth = |rank| (ranks.token(rank), Ranks::logprob(rank));
            Ok(SampledToken {
                token,
                logprob: Some(Ranks::logprob(ranks.rank(token))),
                top_logprobs: (0..top.into()).map(nth).collect(),
            })
        });
        scored.collect()
    }

    fn inject(&self, step: u64) -> Result<(), BackendError> {
        if self.config.faults.panic_at_step == Some(step) {
            panic!("injected into step {step}");
        }
        if self.config.faults.error_at_step == Some(step) {
            return Err(BackendError::Device(format!("injected into step {step}")));
        }
        Ok(())
    }
}

impl Backend for SimBackend {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn capacity(&self) -> Capacity {
        self.config.capacity
    }

    fn host_allocator(&self) -> Arc<dyn HostAllocator> {
        Arc::new(HeapAllocator)
    }

    fn adapter_bytes(&self, header: &ArtifactHeader) -> u64 {
        let bytes = |m: &lorikeet_contract::adapter::ModuleEntry| {
            m.a.bytes + m.b.bytes + m.magnitude.map_or(0, |t| t.bytes)
        };
        header.modules.iter().map(bytes).sum()
    }

    fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
    ) -> Result<(), BackendError> {
        let bytes = self.adapter_bytes(&adapter.header);
        let refused = self.config.faults.refused.contains(&adapter.key.digest);
        let ready_at = self.config.clock.now() + self.config.cost.upload;
        let has_gaps = self.config.faults.fragmented && self.slots.is_uploading();
        if has_gaps && bytes > self.slots.free_bytes() / 2 {
            return Err(BackendError::NoRoomYet { bytes });
        }
        self.slots.begin(slot, adapter.key, bytes, ready_at, refused)
    }

    fn poll_uploads(&mut self, done: &mut Vec<UploadDone>) {
        self.slots.poll(self.config.clock.now(), done);
    }

    fn evict(&mut self, slot: AdapterSlot) {
        self.slots.evict(slot);
    }

    fn set_blocks(&mut self, blocks: u32, moves: &[BlockMove]) -> Result<(), BackendError> {
        let capacity = self.config.capacity;
        if capacity.block_bytes == 0 || blocks > capacity.num_blocks {
            return Err(BackendError::Device(format!("there are no {blocks} blocks")));
        }
        let bytes = capacity.adapter_bytes_beside(blocks);
        let takes_back = blocks > self.shadow.num_blocks();
        if takes_back && self.config.faults.fragmented && self.slots.is_uploading() {
            return Err(BackendError::NoRoomYet { bytes });
        }
        self.slots.set_bytes(bytes).map_err(BackendError::Device)?;
        self.shadow.set_blocks(blocks, moves).map_err(BackendError::Device)
    }

    fn submit(&mut self, batch: &StepBatch) -> Result<StepTicket, BackendError> {
        self.inject(batch.step)?;
        self.slots.fault().map_err(BackendError::Device)?;
        let device = |reason: String| BackendError::Device(reason);
        if batch.rows() > self.config.capacity.max_rows as usize {
            return Err(device(format!("{} rows are too many", batch.rows())));
        }
        if self.running.len() == self.config.capacity.pipeline_depth as usize {
            return Err(device("too many steps are submitted and not collected".into()));
        }
        let mut drawn = HashMap::with_capacity(batch.sequences.len());
        let mut outputs = Vec::with_capacity(batch.sequences.len());
        for step in &batch.sequences {
            let output = self.run(step, &mut drawn).map_err(|reason| {
                device(format!("step {} sequence {}: {reason}", batch.step, step.sequence.0))
            })?;
            outputs.push(output);
        }
        self.previous = drawn;
        let mut slots: Vec<AdapterSlot> =
            batch.sequences.iter().filter_map(|s| s.adapter).collect();
        slots.sort_unstable();
        slots.dedup();
        self.slots.reading(&slots, 1);
        let SimCost { step, row, adapter, .. } = self.config.cost;
        let cost = step + row * batch.rows() as u32 + adapter * slots.len() as u32;
        self.busy_until = self.busy_until.max(self.config.clock.now()) + cost;
        let output = StepOutput { step: batch.step, sequences: outputs };
        self.running.push_back(Running { output, ready_at: self.busy_until, slots });
        Ok(StepTicket(batch.step))
    }

    fn collect(&mut self, ticket: StepTicket) -> Result<StepOutput, BackendError> {
        let step = self.running.pop_front().filter(|running| running.output.step == ticket.0);
        let Some(step) = step else {
            let reason = format!("step {} is not the oldest one submitted", ticket.0);
            return Err(BackendError::Device(reason));
        };
        self.config.clock.wait_until(step.ready_at);
        self.slots.reading(&step.slots, -1);
        Ok(step.output)
    }
}

#[cfg(test)]
mod tests;
