//! Draws against the host's sampler, on the same logits.

use super::lab::{Lab, Part, Random, batch, outcome};
use super::{CheckError, Outcome};
use crate::backend::SampleRequest;
use crate::backend::cuda::kernels::{Sample, Start};
use crate::backend::cuda::layout::TOP_LOGPROBS;
use crate::sampling::{LogitEdit, Sampler, SamplingParams, TokenMask, log_probs};
use std::sync::Arc;

pub fn check(lab: &Lab, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    let plain = SamplingParams::default();
    let kinds = [
        ("greedy", SamplingParams { temperature: 0.0, ..plain.clone() }),
        ("temperature", SamplingParams { temperature: 0.8, ..plain.clone() }),
        ("top-k", SamplingParams { top_k: 40, ..plain.clone() }),
        ("top-p", SamplingParams { top_p: 0.9, ..plain.clone() }),
        ("min-p", SamplingParams { min_p: 0.1, ..plain.clone() }),
        ("all", SamplingParams { temperature: 1.3, top_k: 500, top_p: 0.8, min_p: 0.02, seed: 0 }),
    ];
    for (name, params) in &kinds {
        run(lab, name, params, Changes::default(), report)?;
    }
    let edited = Changes { edits: 300, ..Changes::default() };
    run(lab, "edited", &SamplingParams { temperature: 0.9, ..plain.clone() }, edited, report)?;
    run(lab, "edited, top-p", &SamplingParams { top_p: 0.9, ..plain.clone() }, edited, report)?;
    for allowed in [1, 40, 20_000] {
        for (name, params) in &kinds {
            let changes = Changes { edits: 30, allowed };
            run(lab, &format!("{allowed} allowed, {name}"), params, changes, report)?;
        }
    }
    Ok(())
}

/// What is done to a row's logits before the draw.
#[derive(Clone, Copy, Default)]
struct Changes {
    edits: u64,
    /// Tokens that may be drawn, about; 0: all. Every third row stays unmasked.
    allowed: u64,
}

impl Changes {
    /// Ends before the vocabulary does, so that the last tokens are not in it.
    fn mask(self, row: u32, vocabulary: u64, random: &mut Random) -> Option<Arc<TokenMask>> {
        if self.allowed == 0 || row % 3 == 2 {
            return None;
        }
        let mut words = vec![0u32; vocabulary as usize / 32 - 10];
        for _ in 0..self.allowed {
            let token = random.below(words.len() as u64 * 32);
            words[token as usize / 32] |= 1 << (token % 32);
        }
        Some(Arc::new(TokenMask::new(words)))
    }
}

/// 64 rows. The error is the share of rows with another token, or the largest distance of a log
/// probability.
fn run(
    lab: &Lab,
    name: &str,
    params: &SamplingParams,
    changes: Changes,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    const ROWS: usize = 64;
    let vocabulary = lab.spec.vocab_size as usize;
    let part = Part { position: 0, rows: 1, adapter: None };
    let mut batch = batch(&[part; ROWS], lab.spec.vocab_size);
    let mut random = Random::new(5);
    for (index, sequence) in (0..).zip(&mut batch.sequences) {
        let params = SamplingParams { seed: random.bits(), ..params.clone() };
        let logprobs = Some(if index % 2 == 0 { 5 } else { 0 });
        let step = u64::from(lab.spec.vocab_size) / changes.edits.max(1);
        let edit = |i: u64| LogitEdit {
            token: (i * step + random.below(step)) as u32,
            divisor: 1.0 + random.float(0.3).abs(),
            add: if i.is_multiple_of(7) { f32::NEG_INFINITY } else { random.float(6.0) },
        };
        let edits = (0..changes.edits).map(edit).collect();
        let allowed = changes.mask(index, vocabulary as u64, &mut random);
        sequence.sample =
            Some(SampleRequest { params, output_index: index, edits, allowed, logprobs });
    }
    // A few coarse values, so that there are ties, on top of what falls off as in a language model.
    let logits: Vec<f32> = (0..ROWS * vocabulary)
        .map(|_| {
            let peak = if random.below(1000) == 0 { random.float(8.0).abs() } else { 0.0 };
            ((random.float(2.0) + random.float(2.0)) * 64.0).round() / 64.0 + peak
        })
        .collect();
    let (plan, memory) = lab.plan(&batch, &[])?;
    let b = &lab.buffers;
    lab.write(b.logits, &logits)?;
    let arguments = Sample {
        step: memory.addresses().counts,
        draws: memory.addresses().draws,
        edits: memory.addresses().edits,
        masks: memory.addresses().masks,
        logits: b.logits,
        vocabulary: vocabulary as u32,
        first: 0,
        count: ROWS as u32,
        tokens: b.tokens,
        logprobs: b.logprobs,
        top_ids: b.top_ids,
        top_logprobs: b.top_logprobs,
    };
    // SAFETY: addresses are of the lab's buffers, made for more rows.
    let launch =
        || unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, ROWS as u32, &arguments) };
    launch()?;
    let tokens: Vec<u32> = lab.read(b.tokens, ROWS)?;
    let logprobs: Vec<f32> = lab.read(b.logprobs, ROWS)?;
    let top = TOP_LOGPROBS as usize;
    let top_ids: Vec<u32> = lab.read(b.top_ids, ROWS * top)?;
    let top_logprobs: Vec<f32> = lab.read(b.top_logprobs, ROWS * top)?;
    let mut sampler = Sampler::default();
    let (mut others, mut distance) = (0, 0f64);
    // The plan sorts by adapter, and there is none: rows stand in the batch's order.
    for (row, draw) in plan.draws.iter().enumerate() {
        let logits = &logits[row * vocabulary..][..vocabulary];
        let params = SamplingParams { seed: draw.seed, ..params.clone() };
        let Some(SampleRequest { edits, allowed, .. }) = &batch.sequences[row].sample else {
            continue;
        };
        let allowed = allowed.as_deref();
        let expected = sampler.draw_edited(logits, edits, allowed, &params, draw.output_index);
        others += usize::from(tokens[row] != expected);
        let (logprob, likeliest) = log_probs(logits, tokens[row], draw.logprobs as u8);
        distance = distance.max(f64::from((logprob - logprobs[row]).abs()));
        for (place, (id, logprob)) in likeliest.into_iter().enumerate() {
            let at = row * top + place;
            let off =
                if top_ids[at] == id { (top_logprobs[at] - logprob).abs() } else { f32::INFINITY };
            distance = distance.max(f64::from(off));
        }
    }
    // Few requests ask for log probabilities, which take a pass for each of the likeliest.
    for request in batch.sequences.iter_mut().flat_map(|s| &mut s.sample) {
        request.logprobs = None;
    }
    let (_, memory) = lab.plan(&batch, &[])?;
    let at = memory.addresses();
    let (step, draws, edits, masks) = (at.counts, at.draws, at.edits, at.masks);
    let arguments = Sample { step, draws, edits, masks, ..arguments };
    // SAFETY: as above.
    let launch =
        || unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, ROWS as u32, &arguments) };
    let time = lab.time((ROWS * vocabulary * 4) as u64, launch)?;
    let case = format!("{} {name}, {ROWS} rows", lab.spec.id);
    report(outcome("sample", case.clone(), others as f64 / ROWS as f64, 0.0, Some(time)));
    report(outcome("sample", format!("{case}, log probabilities"), distance, 1e-4, None));
    Ok(())
}
