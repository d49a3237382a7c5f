//! Attention over contexts of many lengths, decode rows and prefill chunks in one launch. What lies
//! behind a sequence's last token is NaN.

use super::lab::{Lab, Part, Random, batch, outcome, relative_error, to_f32};
use super::{CheckError, Outcome, kv};
use crate::backend::StepBatch;
use crate::backend::cuda::Precision;
use crate::backend::cuda::device::DeviceMemory;
use crate::backend::cuda::kernels::{Attention, AttentionDecode, Start};
use half::bf16;

pub fn check(lab: &Lab, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    let decode = |position| Part { position, rows: 1, adapter: None };
    let chunk = |position, rows| Part { position, rows, adapter: None };
    let ragged: Vec<Part> =
        [0, 1, 15, 16, 31, 32, 100, 255, 256, 257, 700, 1500].map(decode).into();
    let mixed = [
        decode(40),
        chunk(0, 1),
        chunk(0, 5),
        chunk(3, 4),
        chunk(17, 130),
        decode(600),
        chunk(512, 33),
    ];
    run(lab, "ragged decode", &ragged, None, report)?;
    run(lab, "mixed", &mixed, None, report)?;
    // Windows that end inside a block, are shorter than a chunk, and longer than most contexts.
    for window in [1, 50, 300] {
        run(lab, &format!("ragged decode, window of {window}"), &ragged, Some(window), report)?;
        run(lab, &format!("mixed, window of {window}"), &mixed, Some(window), report)?;
    }
    for rows in [1, 32, 128] {
        let name = format!("{rows} decode rows x 576");
        run(lab, &name, &vec![decode(575); rows], None, report)?;
    }
    run(lab, "prefill 512", &[chunk(0, 512)], None, report)?;
    for rows in [32, 128] {
        let mut parts = vec![decode(575); rows];
        parts.extend([chunk(384, 128), chunk(0, 384)]);
        let name = format!("{rows} decode rows x 576 + prefill 128 + 384");
        run(lab, &name, &parts, None, report)?;
    }
    Ok(())
}

fn run(
    lab: &Lab,
    name: &str,
    parts: &[Part],
    window: Option<u32>,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let spec = &lab.spec;
    let dim = spec.head_dim as usize;
    let batch = batch(parts, spec.vocab_size);
    let (plan, memory) = lab.plan(&batch, &[])?;
    let rows = plan.rows.len();
    let width = spec.num_heads as usize * dim;
    let queries = to_f32(&Random::new(3).bf16s(rows * width, 2.0));
    let (keys, kv) = cache(lab, &batch)?;
    let b = &lab.buffers;
    let bits: Vec<u16> = queries.iter().map(|q| kv::query_bits(lab, *q)).collect();
    lab.write(b.queries, &bits)?;
    lab.write(b.context, &vec![bf16::NAN; rows * width])?;
    let at = memory.addresses();
    // Blocks count from the first one used, which is not 0.
    let before = u64::from(keys.first_block) * kv::block_bytes(lab) as u64;
    let kv = kv.address().wrapping_sub(before);
    let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
    let attention = Attention {
        step: at.counts,
        items: at.attention,
        block_table: at.blocks,
        queries: b.queries,
        kv,
        out: b.context,
        heads: spec.num_heads,
        kv_heads: spec.num_kv_heads,
        layer: 0,
        layers: 1,
        window: window.unwrap_or(0),
        scale,
    };
    let decode = AttentionDecode {
        step: at.counts,
        items: at.decode,
        block_table: at.blocks,
        queries: b.queries,
        kv,
        out: b.context,
        partial_out: b.partial_out,
        partial_sums: b.partial_sums,
        finished: b.finished_parts,
        queue: if plan.counts.attention_items > 0 { b.queue } else { 0 },
        heads: spec.num_heads,
        kv_heads: spec.num_kv_heads,
        layer: 0,
        layers: 1,
        window: window.unwrap_or(0),
        scale,
    };
    let (chunks, singles) = (plan.counts.attention_items, plan.counts.decode_items);
    let launch = || {
        if chunks > 0 {
            let blocks = lab.kernels.blocks(chunks * spec.num_kv_heads, 1);
            // SAFETY: addresses are of the lab's buffers and of the cache made for this batch.
            unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, blocks, &attention) }?;
        }
        if singles > 0 {
            // Beside the chunks' attention, if there is one.
            let (start, each) =
                if chunks > 0 { (Start::Early, 4) } else { (Start::Afterwards, 16) };
            let blocks = lab.kernels.blocks(singles * spec.num_kv_heads, each);
            // SAFETY: as above.
            unsafe { lab.kernels.launch(&lab.stream, start, blocks, &decode) }?;
        }
        Ok(())
    };
    launch()?;
    let out: Vec<bf16> = lab.read(b.context, rows * width)?;
    let expected = reference(lab, &batch, &queries, &keys, window);
    let seen = |p: &Part| {
        u64::from((p.position + p.rows).min(p.rows + window.unwrap_or(u32::MAX - p.rows)))
    };
    let tokens: u64 = parts.iter().map(seen).sum();
    let time = lab.time(tokens * kv::block_bytes(lab) as u64 / 16, launch)?;
    let error = relative_error(&to_f32(&out), &expected);
    let kind = if lab.kernels.target().kv_precision == Precision::Fp8 { ", fp8 KV" } else { "" };
    let case = format!("{}{kind} {name}", spec.id);
    report(outcome("attention", case, error, 0.008, Some(time)));
    Ok(())
}

/// Keys and values of every token that a batch's sequences have, by sequence, head and token.
struct Cache {
    first_block: u32,
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
}

fn cache(lab: &Lab, batch: &StepBatch) -> Result<(Cache, DeviceMemory), CheckError> {
    let spec = &lab.spec;
    let (heads, dim) = (spec.num_kv_heads as usize, spec.head_dim as usize);
    let page = kv::block_bytes(lab);
    let all = || batch.sequences.iter().flat_map(|s| &s.blocks);
    let first_block = all().map(|b| b.0).min().unwrap_or(0);
    let mut pages = kv::unwritten(lab, all().count());
    let mut random = Random::new(4);
    let mut cache = Cache { first_block, keys: Vec::new(), values: Vec::new() };
    for sequence in &batch.sequences {
        let tokens = sequence.position as usize + sequence.input.rows();
        let mut keys = vec![Vec::new(); heads];
        let mut values = vec![Vec::new(); heads];
        for token in 0..tokens {
            let block = (sequence.blocks[token / 16].0 - first_block) as usize * page;
            let block = &mut pages[block..block + page];
            for head in 0..heads {
                let (key, value) = (random.floats(dim, 1.5), random.floats(dim, 1.0));
                let [key, value] = kv::write(lab, block, (head, token % 16), [&key, &value]);
                keys[head].extend(key);
                values[head].extend(value);
            }
        }
        cache.keys.push(keys);
        cache.values.push(values);
    }
    Ok((cache, lab.memory(&pages)?))
}

fn reference(
    lab: &Lab,
    batch: &StepBatch,
    queries: &[f32],
    cache: &Cache,
    window: Option<u32>,
) -> Vec<f32> {
    let spec = &lab.spec;
    let (heads, dim) = (spec.num_heads as usize, spec.head_dim as usize);
    let group = heads / spec.num_kv_heads as usize;
    let mut out = Vec::with_capacity(queries.len());
    let mut row = 0;
    for (index, sequence) in batch.sequences.iter().enumerate() {
        for offset in 0..sequence.input.rows() {
            let end = sequence.position as usize + offset + 1;
            let start = window.map_or(0, |window| end.saturating_sub(window as usize));
            for head in 0..heads {
                let query = &queries[(row * heads + head) * dim..][..dim];
                let keys = &cache.keys[index][head / group][start * dim..end * dim];
                let values = &cache.values[index][head / group][start * dim..end * dim];
                out.extend(attend(query, keys, values));
            }
            row += 1;
        }
    }
    out
}

fn attend(query: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
    let dim = query.len();
    let scale = 1.0 / (dim as f32).sqrt();
    let dot = |key: &[f32]| key.iter().zip(query).map(|(k, q)| k * q).sum::<f32>() * scale;
    let scores: Vec<f32> = keys.chunks(dim).map(dot).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let mut out = vec![0.0; dim];
    for (weight, value) in weights.iter().zip(values.chunks(dim)) {
        for (out, v) in out.iter_mut().zip(value) {
            *out += weight / sum * v;
        }
    }
    out
}
