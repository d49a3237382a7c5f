//! Prompts fed to the device as they are, and what should come out of each position.

use super::CheckError;
use super::lab::{Random, relative_error};
use crate::backend::batch::SequenceId;
use crate::backend::cuda::{CudaBackend, CudaConfig};
use crate::backend::{AdapterSlot, Backend, BlockId, HostAdapter, Input, LogitsWanted};
use crate::backend::{SampledToken, SequenceStep, StepBatch, StepTicket};
use crate::model::ModelWeights;
use crate::model::reference::{ReferenceAdapter, ReferenceModel};
use std::sync::Arc;

/// Tokens of each sequence, and of the chunks that it is fed in.
pub const TOKENS: usize = 45;
pub const CHUNKS: [usize; 5] = [20, 1, 1, 22, 1];
/// Likeliest tokens that scores come with.
pub const TOP: u8 = 3;

/// A prompt of its own, an adapter, and what should come out.
#[derive(Default)]
pub struct Tenant {
    pub slot: Option<AdapterSlot>,
    pub seed: u64,
    pub logits: Vec<f32>,
}

impl Tenant {
    pub fn distance(&self, out: &[f32]) -> f64 {
        relative_error(out, &self.logits)
    }

    pub fn prompt(&self, vocabulary: u32) -> Vec<u32> {
        prompt(self.seed, vocabulary)
    }
}

fn prompt(seed: u64, vocabulary: u32) -> Vec<u32> {
    let mut random = Random::new(1000 + seed);
    (0..TOKENS).map(|_| random.below(vocabulary.into()) as u32).collect()
}

/// The slow f32 computation.
pub struct Reference {
    model: ReferenceModel,
    vocabulary: u32,
}

impl Reference {
    pub fn new(weights: &ModelWeights) -> Result<Self, CheckError> {
        let model =
            ReferenceModel::new(weights).map_err(|e| CheckError::Reference(e.to_string()))?;
        Ok(Self { model, vocabulary: weights.config.spec.vocab_size })
    }

    /// Of a prompt, at every position.
    pub fn logits(&self, seed: u64, adapter: Option<&HostAdapter>) -> Result<Vec<f32>, CheckError> {
        let failed = |e: candle_core::Error| CheckError::Reference(e.to_string());
        let adapter = match adapter {
            Some(a) => Some(ReferenceAdapter::from_artifact(&a.header, a.file()?).map_err(failed)?),
            None => None,
        };
        let tokens = prompt(seed, self.vocabulary);
        let rows = self.model.forward(&tokens, adapter.as_ref()).map_err(failed)?;
        Ok(rows.concat())
    }
}

pub struct Driver {
    pub backend: CudaBackend,
    step: u64,
}

/// What all steps gave for one tenant.
#[derive(Clone, Default)]
struct Forced {
    logits: Vec<f32>,
    scores: Vec<SampledToken>,
}

impl Driver {
    /// With room for a few prompts, and for so many bytes of adapters.
    pub fn new(
        config: &CudaConfig,
        weights: &ModelWeights,
        adapter_bytes: u64,
    ) -> Result<Self, CheckError> {
        let config = CudaConfig {
            kv_tokens: Some(4096),
            adapter_bytes: Some(adapter_bytes),
            max_rows: Some(512),
            ..config.clone()
        };
        Ok(Self { backend: CudaBackend::new(weights, config)?, step: 0 })
    }

    pub fn upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
    ) -> Result<AdapterSlot, CheckError> {
        self.backend.begin_upload(slot, adapter)?;
        let mut done = Vec::new();
        while done.is_empty() {
            std::thread::yield_now();
            self.backend.poll_uploads(&mut done);
        }
        done.into_iter().try_for_each(|d| d.result)?;
        Ok(slot)
    }

    /// Feeds each tenant's prompt in chunks, all tenants in the same steps, one step ahead; gives
    /// the logits of every position.
    pub fn force(
        &mut self,
        tenants: &[&Tenant],
        chunks: &[usize],
    ) -> Result<Vec<Vec<f32>>, CheckError> {
        let forced = self.feed(tenants, chunks, |_| LogitsWanted::All)?;
        Ok(forced.into_iter().map(|forced| forced.logits).collect())
    }

    /// The same, but gives the scores of every token but the first.
    pub fn score(
        &mut self,
        tenants: &[&Tenant],
        chunks: &[usize],
    ) -> Result<Vec<Vec<SampledToken>>, CheckError> {
        let forced = self.feed(tenants, chunks, |next| LogitsWanted::Scores { top: TOP, next })?;
        Ok(forced.into_iter().map(|forced| forced.scores).collect())
    }

    /// `wanted` is told the token that follows the chunk. Blocks are taken in an order that differs with
    /// each call.
    fn feed(
        &mut self,
        tenants: &[&Tenant],
        chunks: &[usize],
        wanted: impl Fn(Option<u32>) -> LogitsWanted,
    ) -> Result<Vec<Forced>, CheckError> {
        let vocabulary = self.backend.limits.spec.vocab_size;
        let prompts: Vec<Vec<u32>> = tenants.iter().map(|t| t.prompt(vocabulary)).collect();
        let each = TOKENS.div_ceil(16) as u32;
        let shift = self.step as u32 * 7;
        let num_blocks = self.backend.capacity().num_blocks;
        let block = |i: u32| BlockId((i * 5 + shift) % num_blocks);
        let mut position = 0;
        let mut tickets = Vec::new();
        let mut forced = vec![Forced::default(); tenants.len()];
        for &chunk in chunks {
            self.step += 1;
            let end = position + chunk;
            let sequence = |(index, (tenant, prompt)): (u32, (&&Tenant, &Vec<u32>))| SequenceStep {
                sequence: SequenceId(index.into()),
                input: Input::Tokens(prompt[position..end].to_vec()),
                position: position as u32,
                blocks: (index * each..(index + 1) * each).map(block).collect(),
                adapter: tenant.slot,
                sample: None,
                logits: wanted(prompt.get(end).copied()),
            };
            let sequences = (0..).zip(tenants.iter().zip(&prompts)).map(sequence).collect();
            tickets.push(self.backend.submit(&StepBatch { step: self.step, sequences })?);
            position = end;
            if tickets.len() == self.backend.capacity().pipeline_depth as usize {
                self.collect(tickets.remove(0), &mut forced)?;
            }
        }
        for ticket in tickets {
            self.collect(ticket, &mut forced)?;
        }
        Ok(forced)
    }

    fn collect(&mut self, ticket: StepTicket, forced: &mut [Forced]) -> Result<(), CheckError> {
        for (forced, output) in forced.iter_mut().zip(self.backend.collect(ticket)?.sequences) {
            forced.logits.extend(output.logits.concat());
            forced.scores.extend(output.scores);
        }
        Ok(())
    }
}
