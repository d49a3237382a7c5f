//! What the CPU backend gives for the same tokens and adapters.

use super::CheckError;
use crate::backend::batch::SequenceId;
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::{
    AdapterSlot, Backend, BlockId, HostAdapter, Input, LogitsWanted, SequenceStep, StepBatch,
};
use crate::model::ModelWeights;
use half::bf16;
use std::sync::Arc;

pub struct Oracle {
    cpu: CpuBackend<bf16>,
    step: u64,
}

impl Oracle {
    /// For sequences of up to so many tokens, with these adapters, named by their place.
    pub fn new(
        weights: &ModelWeights,
        adapters: Vec<Arc<HostAdapter>>,
        most_tokens: usize,
    ) -> Result<Self, CheckError> {
        let config = CpuConfig {
            kv_tokens: most_tokens,
            adapter_bytes: u64::MAX,
            max_rows: most_tokens,
            ..CpuConfig::default()
        };
        let mut cpu = CpuBackend::new(weights, config)?;
        let memory = cpu.host_allocator();
        for (index, adapter) in (0..).zip(adapters) {
            let adapter = Arc::into_inner(adapter).expect("it was just made");
            let prepared = memory.prepare(adapter)?;
            cpu.begin_upload(AdapterSlot { index, generation: 1 }, Arc::new(prepared))?;
        }
        let mut done = Vec::new();
        cpu.poll_uploads(&mut done);
        done.into_iter().try_for_each(|d| d.result)?;
        Ok(Self { cpu, step: 0 })
    }

    /// Logits after these tokens, all fed at once.
    pub fn logits(
        &mut self,
        adapter: Option<usize>,
        tokens: Vec<u32>,
    ) -> Result<Vec<f32>, CheckError> {
        let sequence = SequenceStep {
            sequence: SequenceId(0),
            input: Input::Tokens(tokens),
            position: 0,
            blocks: (0..self.cpu.capacity().num_blocks).map(BlockId).collect(),
            adapter: adapter.map(|index| AdapterSlot { index: index as u32, generation: 1 }),
            sample: None,
            logits: LogitsWanted::Last,
        };
        self.step += 1;
        let batch = StepBatch { step: self.step, sequences: vec![sequence] };
        let ticket = self.cpu.submit(&batch)?;
        let output = self.cpu.collect(ticket)?;
        let logits = output.sequences.into_iter().next().and_then(|s| s.logits.into_iter().next());
        logits.ok_or_else(|| CheckError::Reference("the CPU backend gave no logits".into()))
    }
}
