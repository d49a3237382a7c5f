//! Draws against the host's sampler, on the same logits.

use super::lab::{Lab, Part, Random, batch, outcome};
use super::{CheckError, Outcome};
use crate::backend::SampleRequest;
use crate::backend::cuda::kernels::{Sample, Start};
use crate::backend::cuda::layout::TOP_LOGPROBS;
use crate::sampling::{LogitEdit, Sampler, SamplingParams, log_probs};

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
    for (name, params) in kinds {
        run(lab, name, &params, 0, report)?;
    }
    let edited = SamplingParams { temperature: 0.9, ..plain.clone() };
    run(lab, "edited", &edited, 300, report)?;
    run(lab, "edited, top-p", &SamplingParams { top_p: 0.9, ..plain }, 300, report)
}

/// 64 rows. The error is the share of rows with another token, or the largest distance of a log
/// probability.
fn run(
    lab: &Lab,
    name: &str,
    params: &SamplingParams,
    edits: u64,
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
        let step = u64::from(lab.spec.vocab_size) / edits.max(1);
        let edit = |i: u64| LogitEdit {
            token: (i * step + random.below(step)) as u32,
            divisor: 1.0 + random.float(0.3).abs(),
            add: if i.is_multiple_of(7) { f32::NEG_INFINITY } else { random.float(6.0) },
        };
        let edits = (0..edits).map(edit).collect();
        sequence.sample =
            Some(SampleRequest { params, output_index: index, edits, allowed: None, logprobs });
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
        let edits = batch.sequences[row].sample.iter().flat_map(|s| s.edits.clone());
        let edits: Vec<LogitEdit> = edits.collect();
        let expected = sampler.draw_edited(logits, &edits, None, &params, draw.output_index);
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
    let time = lab.time((ROWS * vocabulary * 4) as u64, launch)?;
    let case = format!("{} {name}, {ROWS} rows", lab.spec.id);
    report(outcome("sample", case.clone(), others as f64 / ROWS as f64, 0.0, Some(time)));
    report(outcome("sample", format!("{case}, log probabilities"), distance, 1e-4, None));
    Ok(())
}
