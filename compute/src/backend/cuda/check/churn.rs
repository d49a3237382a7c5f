//! Many steps with adapters coming and going, against the CPU backend: sequences of random length,
//! each with a random adapter or none, decode side by side, one step ahead; adapters are evicted,
//! their extents poisoned, and others placed there between the replays. At some steps the logits are
//! compared with what the CPU backend gives for the same tokens.

use super::lab::{Random, outcome, relative_error};
use super::model::{adapters, random_model};
use super::{CheckError, Outcome};
use crate::backend::BlockId;
use crate::backend::batch::SequenceId;
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::cuda::layout::ExtentLayout;
use crate::backend::cuda::{Counters, CudaBackend, CudaConfig};
use crate::backend::{
    AdapterSlot, Backend, BackendError, HostAdapter, Input, LogitsWanted, SampleRequest,
    SequenceStep, StepBatch, StepTicket,
};
use crate::sampling::SamplingParams;
use half::bf16;
use lorikeet_contract::BaseModelSpec;
use std::collections::VecDeque;
use std::sync::Arc;

/// Two computations in bf16; an adapter that is missing, or another's, is 0.3 away.
const TOLERANCE: f64 = 0.03;
const STEPS: u64 = 10_000;
/// Every how many steps logits are compared.
const EVERY: u64 = STEPS / 50;
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
    let mut churn = Churn::new(config, spec)?;
    for _ in 0..STEPS {
        churn.step()?;
    }
    churn.drain()?;
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

struct Sequence {
    id: u64,
    adapter: Option<usize>,
    tokens: Vec<u32>,
    /// Tokens submitted so far; as many as `target` at the end.
    position: usize,
    target: usize,
    /// A step that draws its next token has not been collected.
    is_pending: bool,
    first_block: u32,
}

struct Resident {
    adapter: usize,
    slot: AdapterSlot,
    is_ready: bool,
}

struct Churn {
    spec: BaseModelSpec,
    cuda: CudaBackend,
    cpu: CpuBackend<bf16>,
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
    worst: f64,
}

impl Churn {
    fn new(config: &CudaConfig, spec: BaseModelSpec) -> Result<Self, CheckError> {
        let weights = random_model(spec);
        let spec = weights.config.spec.clone();
        let for_the_cpu = adapters(&spec);
        let adapters = adapters(&spec);
        let sizes = adapters.iter().map(|a| Ok(ExtentLayout::new(&a.header, &spec)?.bytes));
        let sizes: Vec<u64> = sizes.collect::<Result<_, CheckError>>()?;
        let largest = sizes.iter().max().copied().unwrap_or(0);
        let config = CudaConfig {
            kv_tokens: Some((SEQUENCES as u64 + 1) * MOST_TOKENS as u64),
            // About half of them fit, and their sizes differ: extents are cut, joined and moved.
            adapter_bytes: (sizes.iter().sum::<u64>() / 2).max(largest),
            max_rows: Some(512),
            ..config.clone()
        };
        let cpu_config = CpuConfig {
            kv_tokens: MOST_TOKENS,
            adapter_bytes: u64::MAX,
            max_rows: MOST_TOKENS,
            ..CpuConfig::default()
        };
        let mut cpu = CpuBackend::new(&weights, cpu_config)?;
        let memory = cpu.host_allocator();
        for (index, adapter) in (0..).zip(for_the_cpu) {
            let adapter = Arc::into_inner(adapter).expect("it was just made");
            let prepared = memory.prepare(adapter)?;
            cpu.begin_upload(AdapterSlot { index, generation: 1 }, Arc::new(prepared))?;
        }
        let mut done = Vec::new();
        cpu.poll_uploads(&mut done);
        done.into_iter().try_for_each(|d| d.result)?;
        let cuda = CudaBackend::new(&weights, config)?;
        let mut churn = Self {
            spec,
            cuda,
            cpu,
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
            worst: 0.0,
        };
        for place in 0..SEQUENCES {
            let new = churn.new_sequence(place);
            churn.sequences.push(new);
        }
        Ok(churn)
    }

    fn new_sequence(&mut self, place: usize) -> Sequence {
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
            first_block: place as u32 * BLOCKS,
        }
    }

    fn step(&mut self) -> Result<(), CheckError> {
        self.step += 1;
        for place in 0..self.sequences.len() {
            let old = &self.sequences[place];
            if old.position >= old.target && !old.is_pending {
                self.sequences[place] = self.new_sequence(place);
            }
        }
        self.place_adapters()?;
        let is_compared = self.step.is_multiple_of(EVERY);
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
        for sequence in &mut self.sequences {
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
                blocks: (sequence.first_block..sequence.first_block + BLOCKS)
                    .map(BlockId)
                    .collect(),
                adapter: slot.flatten(),
                sample: Some(SampleRequest {
                    params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
                    output_index: 0,
                    edits: Vec::new(),
                    allowed: None,
                    logprobs: None,
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
            let expected = self.on_cpu(self.sequences[place].adapter, tokens)?;
            self.worst = self.worst.max(relative_error(&logits, &expected));
            self.compared += 1;
        }
        Ok(())
    }

    /// The CPU backend's logits after these tokens, all fed at once.
    fn on_cpu(&mut self, adapter: Option<usize>, tokens: Vec<u32>) -> Result<Vec<f32>, CheckError> {
        let sequence = SequenceStep {
            sequence: SequenceId(0),
            input: Input::Tokens(tokens),
            position: 0,
            blocks: (0..self.cpu.capacity().num_blocks).map(BlockId).collect(),
            adapter: adapter.map(|index| AdapterSlot { index: index as u32, generation: 1 }),
            sample: None,
            logits: LogitsWanted::Last,
        };
        let batch = StepBatch { step: self.step, sequences: vec![sequence] };
        let ticket = self.cpu.submit(&batch)?;
        let output = self.cpu.collect(ticket)?;
        let logits = output.sequences.into_iter().next().and_then(|s| s.logits.into_iter().next());
        logits.ok_or_else(|| CheckError::Reference("the CPU backend gave no logits".into()))
    }

    /// Starts to place adapters that sequences wait for, in the place of those that nobody has.
    fn place_adapters(&mut self) -> Result<(), CheckError> {
        let mut done = Vec::new();
        self.cuda.poll_uploads(&mut done);
        for upload in done {
            upload.result?;
            let at = self.resident.iter_mut().find(|r| r.slot == upload.slot);
            at.into_iter().for_each(|r| r.is_ready = true);
        }
        let wanted: Vec<usize> = self.sequences.iter().filter_map(|s| s.adapter).collect();
        for &adapter in &wanted {
            if self.resident.iter().any(|r| r.adapter == adapter) {
                continue;
            }
            if !self.begin_upload(adapter)? {
                let idle =
                    self.resident.iter().position(|r| r.is_ready && !wanted.contains(&r.adapter));
                match idle {
                    Some(index) => self.evict(index)?,
                    // Full of adapters in use: the next step, or one of the next, has room.
                    None => self.make_way(adapter)?,
                }
            }
        }
        Ok(())
    }

    /// Sequences of the adapter that is wanted least end early, so that one that does not fit gets in.
    fn make_way(&mut self, for_adapter: usize) -> Result<(), CheckError> {
        if self.resident.iter().any(|r| !r.is_ready) {
            return Ok(());
        }
        let Some(index) = self.resident.iter().position(|r| r.adapter != for_adapter) else {
            return Ok(());
        };
        let adapter = self.resident[index].adapter;
        self.drain()?;
        for sequence in self.sequences.iter_mut().filter(|s| s.adapter == Some(adapter)) {
            sequence.target = sequence.position;
        }
        self.evict(index)
    }

    fn begin_upload(&mut self, adapter: usize) -> Result<bool, CheckError> {
        self.generation += 1;
        let used = |index: u32| self.resident.iter().any(|r| r.slot.index == index);
        let index = (0..).find(|&index| !used(index)).unwrap_or(0);
        let slot = AdapterSlot { index, generation: self.generation };
        match self.cuda.begin_upload(slot, self.adapters[adapter].clone()) {
            Ok(()) => {
                self.resident.push(Resident { adapter, slot, is_ready: false });
                self.uploads += 1;
                Ok(true)
            }
            Err(BackendError::NoRoomYet { .. } | BackendError::OutOfMemory { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Frees a slot and fills its extent with NaN.
    fn evict(&mut self, index: usize) -> Result<(), CheckError> {
        self.drain()?;
        let Resident { adapter, slot, .. } = self.resident.swap_remove(index);
        let address = self.cuda.adapters.address(slot)?;
        let bytes = ExtentLayout::new(&self.adapters[adapter].header, &self.spec)?.bytes;
        self.cuda.evict(slot);
        let poison = vec![0xffu8; bytes as usize];
        // SAFETY: the extent belongs to nobody, and no submitted step reads it.
        unsafe { self.cuda.stream.upload(address, &poison) }?;
        Ok(self.cuda.stream.synchronize()?)
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
