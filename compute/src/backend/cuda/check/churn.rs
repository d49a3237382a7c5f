//! Many steps with adapters coming and going, against the CPU backend: sequences of random length,
//! each with a random adapter or none, decode side by side, one step ahead; adapters are evicted,
//! their extents poisoned, and others placed there between the replays. At some steps the logits are
//! compared with what the CPU backend gives for the same tokens. Once more with little memory, of which
//! adapters take blocks when they lack room, and leave them again: blocks move under steps that are
//! under way.

mod blocks;
mod memory;

use super::lab::{Random, outcome, relative_error};
use super::model::{adapters, random_model};
use super::oracle::Oracle;
use super::{CheckError, Outcome};
use crate::backend::batch::SequenceId;
use crate::backend::cuda::layout::ExtentLayout;
use crate::backend::cuda::{Counters, CudaBackend, CudaConfig, kv_page_bytes};
use crate::backend::{
    AdapterSlot, Backend, HostAdapter, Input, LogitsWanted, SampleRequest, SequenceStep, StepBatch,
    StepTicket,
};
use crate::sampling::SamplingParams;
use blocks::Blocks;
use lorikeet_contract::BaseModelSpec;
use std::collections::VecDeque;
use std::sync::Arc;

/// Two computations in bf16; an adapter that is missing, or another's, is 0.3 away.
pub const TOLERANCE: f64 = 0.03;
const STEPS: u64 = 10_000;
const BORDER_STEPS: u64 = 2_000;
/// At so many steps logits are compared.
const COMPARISONS: u64 = 50;
const BORDER_COMPARISONS: u64 = 25;
/// Fewer moves of the border, and of blocks, would show nothing.
const FEWEST_MOVES: u64 = 50;
const SEQUENCES: usize = 12;
/// Of them, compared at each of those steps.
const COMPARED: usize = 4;
const MOST_TOKENS: usize = 96;
const BLOCKS: u32 = MOST_TOKENS as u32 / 16;
/// Steps in which nothing comes or goes, to count what each costs.
const STEADY: u64 = 40;

pub fn check(
    config: &CudaConfig,
    spec: BaseModelSpec,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let mut churn = Churn::new(config, spec, Memory::Fixed)?;
    churn.run(STEPS, COMPARISONS)?;
    let counters = churn.cuda.counters();
    let case = format!(
        "{}: {STEPS} steps, {} compared, {} uploads, {} replays of {} graphs",
        churn.spec.id, churn.compared, churn.uploads, counters.replays, counters.recordings
    );
    report(outcome("churn", case, churn.worst, TOLERANCE, None));
    let spent = churn.steady()?;
    let case = format!("{}: {STEADY} steps, {spent:?}", churn.spec.id);
    let expected = Counters { allocations: 0, waits: STEADY, recordings: 0, replays: STEADY };
    let error = if spent == expected { 0.0 } else { f64::INFINITY };
    report(outcome("steady", case, error, 0.0, None));
    Ok(())
}

/// The same where blocks and adapters share memory.
pub fn check_border(
    config: &CudaConfig,
    spec: BaseModelSpec,
    tolerance: f64,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let mut churn = Churn::new(config, spec, Memory::Shared)?;
    churn.run(BORDER_STEPS, BORDER_COMPARISONS)?;
    let case = format!(
        "{}: {BORDER_STEPS} steps, {} compared, {} uploads, {} borders, {} blocks moved",
        churn.spec.id, churn.compared, churn.uploads, churn.borders, churn.moved
    );
    let has_moved = churn.borders.min(churn.moved) >= FEWEST_MOVES;
    let error = if has_moved { churn.worst } else { f64::INFINITY };
    report(outcome("border", case, error, tolerance, None));
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Fixed,
    Shared,
}

struct Sequence {
    id: u64,
    adapter: Option<usize>,
    tokens: Vec<u32>,
    /// Tokens submitted so far; as many as `target` at the end.
    position: usize,
    target: usize,
    /// A step that draws its next token has not been collected.
    is_pending: bool,
}

struct Resident {
    adapter: usize,
    slot: AdapterSlot,
    is_ready: bool,
}

struct Churn {
    spec: BaseModelSpec,
    cuda: CudaBackend,
    oracle: Oracle,
    memory: Memory,
    blocks: Blocks,
    adapters: Vec<Arc<HostAdapter>>,
    resident: Vec<Resident>,
    generation: u32,
    sequences: Vec<Sequence>,
    in_flight: VecDeque<(StepTicket, Vec<u64>)>,
    random: Random,
    step: u64,
    next_id: u64,
    uploads: u64,
    compared: u64,
    /// Places of the border, and blocks that moved for them.
    borders: u64,
    moved: u64,
    worst: f64,
}

impl Churn {
    fn new(config: &CudaConfig, spec: BaseModelSpec, memory: Memory) -> Result<Self, CheckError> {
        let weights = random_model(spec);
        let spec = weights.config.spec.clone();
        let oracle = Oracle::new(&weights, adapters(&spec), MOST_TOKENS)?;
        let adapters = adapters(&spec);
        let sizes = adapters.iter().map(|a| Ok(ExtentLayout::new(&a.header, &spec)?.bytes));
        let sizes: Vec<u64> = sizes.collect::<Result<_, CheckError>>()?;
        let largest = sizes.iter().max().copied().unwrap_or(0);
        // About half of them fit, and their sizes differ: extents are cut, joined and moved.
        let half = (sizes.iter().sum::<u64>() / 2).max(largest);
        let held = SEQUENCES as u64 * u64::from(BLOCKS);
        let (blocks, adapter_bytes) = match memory {
            Memory::Fixed => (held + u64::from(BLOCKS), half),
            // One fits for certain; the others take the place of blocks.
            Memory::Shared => {
                (held + half.div_ceil(kv_page_bytes(&spec, config.kv_precision)), largest)
            }
        };
        let config = CudaConfig {
            kv_tokens: Some(blocks * 16),
            adapter_bytes: Some(adapter_bytes),
            max_rows: Some(512),
            ..config.clone()
        };
        let cuda = CudaBackend::new(&weights, config)?;
        let blocks = Blocks::new(SEQUENCES as u32, BLOCKS, cuda.capacity().num_blocks);
        let mut churn = Self {
            spec,
            cuda,
            oracle,
            memory,
            blocks,
            adapters,
            resident: Vec::new(),
            generation: 0,
            sequences: Vec::new(),
            in_flight: VecDeque::new(),
            random: Random::new(77),
            step: 0,
            next_id: 0,
            uploads: 0,
            compared: 0,
            borders: 0,
            moved: 0,
            worst: 0.0,
        };
        for _ in 0..SEQUENCES {
            let new = churn.new_sequence();
            churn.sequences.push(new);
        }
        Ok(churn)
    }

    fn run(&mut self, steps: u64, comparisons: u64) -> Result<(), CheckError> {
        for _ in 0..steps {
            self.step(steps / comparisons)?;
        }
        self.drain()
    }

    fn new_sequence(&mut self) -> Sequence {
        let kinds = self.adapters.len() as u64 + 1;
        let vocabulary = u64::from(self.spec.vocab_size);
        let prompt = 1 + self.random.below(40) as usize;
        self.next_id += 1;
        Sequence {
            id: self.next_id,
            adapter: (self.random.below(kinds) as usize).checked_sub(1),
            tokens: (0..prompt).map(|_| self.random.below(vocabulary) as u32).collect(),
            position: 0,
            target: prompt + 1 + self.random.below((MOST_TOKENS - 41) as u64) as usize,
            is_pending: false,
        }
    }

    /// Compares logits every so many steps.
    fn step(&mut self, every: u64) -> Result<(), CheckError> {
        self.step += 1;
        for place in 0..self.sequences.len() {
            let old = &self.sequences[place];
            if old.position >= old.target && !old.is_pending {
                self.blocks.deal_anew(place, &mut self.random);
                self.sequences[place] = self.new_sequence();
            }
        }
        self.place_adapters()?;
        self.leave_blocks()?;
        let is_compared = self.step.is_multiple_of(every);
        let wanted = if is_compared { LogitsWanted::Last } else { LogitsWanted::None };
        if !self.submit(wanted)? {
            // Everybody waits for an adapter.
            return self.drain();
        }
        if is_compared {
            return self.drain();
        }
        if self.in_flight.len() == self.cuda.capacity().pipeline_depth as usize {
            self.collect()?;
        }
        Ok(())
    }

    /// Submits every sequence whose adapter is there; false when there is none.
    fn submit(&mut self, logits: LogitsWanted) -> Result<bool, CheckError> {
        let mut batch = StepBatch { step: self.step, sequences: Vec::new() };
        for (place, sequence) in self.sequences.iter_mut().enumerate() {
            if sequence.position >= sequence.target {
                continue;
            }
            let slot = sequence.adapter.map(|adapter| {
                self.resident.iter().find(|r| r.adapter == adapter && r.is_ready).map(|r| r.slot)
            });
            if slot == Some(None) {
                continue;
            }
            let input = match sequence.is_pending {
                true => Input::PreviousSample,
                false => Input::Tokens(sequence.tokens[sequence.position..].to_vec()),
            };
            let rows = input.rows();
            batch.sequences.push(SequenceStep {
                sequence: SequenceId(sequence.id),
                input,
                position: sequence.position as u32,
                blocks: self.blocks.table(place),
                adapter: slot.flatten(),
                sample: Some(SampleRequest {
                    params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
                    ..SampleRequest::default()
                }),
                logits,
            });
            sequence.position += rows;
            sequence.is_pending = true;
        }
        // Who sat out this step has no sample of the step before in the next.
        let ids: Vec<u64> = batch.sequences.iter().map(|s| s.sequence.0).collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let ticket = self.cuda.submit(&batch)?;
        self.in_flight.push_back((ticket, ids));
        Ok(true)
    }

    fn drain(&mut self) -> Result<(), CheckError> {
        while !self.in_flight.is_empty() {
            self.collect()?;
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<(), CheckError> {
        let Some((ticket, ids)) = self.in_flight.pop_front() else { return Ok(()) };
        let output = self.cuda.collect(ticket)?;
        let is_last = |id: u64, rest: &VecDeque<(StepTicket, Vec<u64>)>| {
            rest.iter().all(|(_, ids)| !ids.contains(&id))
        };
        let mut compare = Vec::new();
        for (id, output) in ids.into_iter().zip(output.sequences) {
            let Some(place) = self.sequences.iter().position(|s| s.id == id) else { continue };
            if let Some(logits) = output.logits.first() {
                compare.push((place, self.sequences[place].tokens.clone(), logits.clone()));
            }
            let sequence = &mut self.sequences[place];
            sequence.tokens.extend(output.sampled.map(|s| s.token));
            sequence.is_pending = !is_last(id, &self.in_flight);
        }
        while compare.len() > COMPARED {
            let index = self.random.below(compare.len() as u64) as usize;
            compare.swap_remove(index);
        }
        for (place, tokens, logits) in compare {
            let expected = self.oracle.logits(self.sequences[place].adapter, tokens)?;
            self.worst = self.worst.max(relative_error(&logits, &expected));
            self.compared += 1;
        }
        Ok(())
    }

    /// What steps cost in which nothing comes or goes.
    fn steady(&mut self) -> Result<Counters, CheckError> {
        self.drain()?;
        let ready = |s: &Sequence, resident: &[Resident]| {
            s.adapter.is_none_or(|a| resident.iter().any(|r| r.adapter == a && r.is_ready))
        };
        self.sequences.retain(|s| ready(s, &self.resident));
        for sequence in &mut self.sequences {
            sequence.position = 0;
            sequence.tokens.truncate(20);
            sequence.target = usize::MAX;
        }
        // Prompts, and the graph for those that decode, come first.
        for _ in 0..4 {
            self.step += 1;
            self.submit(LogitsWanted::None)?;
            if self.in_flight.len() > 1 {
                self.collect()?;
            }
        }
        let before = self.cuda.counters();
        for _ in 0..STEADY {
            self.step += 1;
            self.submit(LogitsWanted::None)?;
            self.collect()?;
        }
        Ok(self.cuda.counters().since(before))
    }
}
