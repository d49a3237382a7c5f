//! Sequences driven through a backend as the engine would, with blocks handed out in a row.

use crate::backend::AdapterKey;
use crate::backend::BlockId;
use crate::backend::batch::SequenceId;
use crate::backend::{
    AdapterSlot, Backend, HostAdapter, HostData, Input, LogitsWanted, SampleRequest,
    SequenceOutput, SequenceStep, StepBatch,
};
use crate::sampling::SamplingParams;
use lorikeet_contract::adapter::{ArtifactHeader, content, pack};
use lorikeet_contract::{BaseModelSpec, TenantId};
use std::io::Cursor;
use std::sync::Arc;

pub const GREEDY: SamplingParams =
    SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 };

/// One sequence and what it is to feed next.
#[derive(Debug, Clone)]
pub struct Running {
    pub id: u64,
    pub adapter: Option<AdapterSlot>,
    pub position: usize,
    pub blocks: Vec<BlockId>,
    pub params: SamplingParams,
    pub drawn: u32,
    pub logits: LogitsWanted,
    pub logprobs: Option<u8>,
}

pub struct Driver<B> {
    pub backend: B,
    next_block: u32,
    next_sequence: u64,
    step: u64,
}

impl<B: Backend> Driver<B> {
    pub fn new(backend: B) -> Self {
        Self { backend, next_block: 0, next_sequence: 0, step: 0 }
    }

    /// A sequence with blocks for `tokens` tokens.
    pub fn start(&mut self, adapter: Option<AdapterSlot>, tokens: usize) -> Running {
        let count = tokens.div_ceil(self.backend.capacity().block_size as usize) as u32;
        let blocks = (self.next_block..self.next_block + count).map(BlockId).collect();
        self.next_block += count;
        self.next_sequence += 1;
        Running {
            id: self.next_sequence,
            adapter,
            position: 0,
            blocks,
            params: GREEDY,
            drawn: 0,
            logits: LogitsWanted::None,
            logprobs: None,
        }
    }

    /// Gives all blocks back: the next sequences overwrite what the last ones left.
    pub fn reuse_blocks(&mut self) {
        self.next_block = 0;
    }

    pub fn step(&mut self, sequences: &mut [(&mut Running, Input)]) -> Vec<SequenceOutput> {
        self.step += 1;
        let mut batch = StepBatch { step: self.step, sequences: Vec::new() };
        for (sequence, input) in sequences.iter() {
            let sample = SampleRequest {
                params: sequence.params.clone(),
                output_index: sequence.drawn,
                logprobs: sequence.logprobs,
                ..SampleRequest::default()
            };
            batch.sequences.push(SequenceStep {
                sequence: SequenceId(sequence.id),
                input: input.clone(),
                position: sequence.position as u32,
                blocks: sequence.blocks.clone(),
                adapter: sequence.adapter,
                sample: Some(sample),
                logits: sequence.logits,
            });
        }
        let ticket = self.backend.submit(&batch).unwrap();
        let output = self.backend.collect(ticket).unwrap();
        for (sequence, input) in sequences {
            sequence.position += input.rows();
            sequence.drawn += 1;
        }
        output.sequences
    }

    pub fn upload(&mut self, index: u32, adapter: HostAdapter) -> AdapterSlot {
        let slot = AdapterSlot { index, generation: 1 };
        let adapter = self.backend.host_allocator().prepare(adapter).unwrap();
        self.backend.begin_upload(slot, Arc::new(adapter)).unwrap();
        let mut done = Vec::new();
        self.backend.poll_uploads(&mut done);
        assert_eq!(done.len(), 1);
        done.remove(0).result.unwrap();
        slot
    }
}

/// An adapter of the kit, checked and packed as the control plane would.
pub fn kit_adapter(name: &str, base: &BaseModelSpec) -> HostAdapter {
    let dir = lorikeet_kit::adapter_dir(name);
    let read = |file: &str| std::fs::read(dir.join(file)).unwrap();
    host_adapter(&read("adapter_config.json"), read("adapter_model.safetensors"), base)
}

pub fn host_adapter(config: &[u8], weights: Vec<u8>, base: &BaseModelSpec) -> HostAdapter {
    let mut weights = Cursor::new(weights);
    let inspected = content::inspect(config, &mut weights, base).unwrap();
    let mut file = Vec::new();
    pack::pack(&inspected.plan, inspected.digest, &mut weights, &mut file).unwrap();
    let header = ArtifactHeader::parse(&file, file.len() as u64).unwrap();
    let key =
        AdapterKey { tenant: TenantId::from_uuid(uuid::Uuid::nil()), digest: inspected.digest };
    HostAdapter { key, header, data: HostData::File(Box::new(file)) }
}
