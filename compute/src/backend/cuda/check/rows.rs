//! Kernels that treat each row by itself: embedding, norm, gather.

use super::lab::{Lab, Part, Random, batch, outcome, relative_error, to_f32};
use super::{CheckError, Outcome};
use crate::backend::cuda::kernels::{Embed, Gather, RmsNorm, Scales, Start};
use half::bf16;

const EPS: f32 = 1e-5;

pub fn check(lab: &Lab, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    for rows in [1, 32, 300] {
        embed(lab, rows, report)?;
        for adds in [false, true] {
            norm(lab, rows, adds, report)?;
        }
    }
    Ok(())
}

fn embed(lab: &Lab, rows: u32, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    let width = lab.spec.hidden_size as usize;
    let vocabulary = 5000;
    let table = Random::new(1).bf16s(vocabulary * width, 1.0);
    let table_memory = lab.memory(&table)?;
    let part = Part { position: 0, rows, adapter: None };
    let (plan, memory) = lab.plan(&batch(&[part], vocabulary as u32), &[])?;
    let b = &lab.buffers;
    let arguments = Embed {
        step: memory.addresses().counts,
        rows: memory.addresses().rows,
        sampled: b.tokens,
        table: table_memory.address(),
        hidden: b.hidden,
        width: width as u32,
    };
    // SAFETY: addresses are of the lab's buffers, made for more rows.
    unsafe {
        lab.kernels.launch(&lab.stream, Start::Afterwards, lab.kernels.blocks(rows, 8), &arguments)
    }?;
    let out: Vec<f32> = lab.read(b.hidden, rows as usize * width)?;
    let expected: Vec<f32> = plan
        .rows
        .iter()
        .flat_map(|row| to_f32(&table[row.token as usize * width..][..width]))
        .collect();
    let case = format!("{} {rows} rows", lab.spec.id);
    report(outcome("embed", case, relative_error(&out, &expected), 0.0, None));

    lab.write(b.x, &table[..rows as usize * width])?;
    let arguments = Gather {
        step: memory.addresses().counts,
        logit_rows: memory.addresses().logit_rows,
        x: b.x,
        out: b.gathered,
        width: width as u32,
        first: 0,
        count: 1,
    };
    // SAFETY: as above.
    unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, 1, &arguments) }?;
    let out: Vec<bf16> = lab.read(b.gathered, width)?;
    let expected = &table[(rows as usize - 1) * width..][..width];
    let case = format!("{} {rows} rows", lab.spec.id);
    let error = relative_error(&to_f32(&out), &to_f32(expected));
    report(outcome("gather", case, error, 0.0, None));
    Ok(())
}

fn norm(
    lab: &Lab,
    rows: u32,
    adds: bool,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let width = lab.spec.hidden_size as usize;
    let count = rows as usize * width;
    let mut random = Random::new(2);
    let hidden = random.floats(count, 3.0);
    let y = random.bf16s(count, 2.0);
    let weight = random.floats(width, 1.5);
    let weight_memory = lab.memory(&weight)?;
    let part = Part { position: 0, rows, adapter: None };
    let (_, memory) = lab.plan(&batch(&[part], lab.spec.vocab_size), &[])?;
    let b = &lab.buffers;
    lab.write(b.hidden, &hidden)?;
    lab.write(b.y, &y)?;
    // Ones: what scales do is checked with the adapters.
    lab.write(b.x_scales, &vec![1f32; rows as usize])?;
    let ones = lab.memory(&vec![1f32; width])?;
    let arguments = RmsNorm {
        step: memory.addresses().counts,
        hidden: b.hidden,
        y: if adds { b.y } else { 0 },
        scales: Scales { rows: b.x_scales, outputs: ones.address() },
        weight: weight_memory.address(),
        x: b.x,
        x8: b.x8,
        // Not where the product's own scales are, so that the kernel may run again.
        x_scales: b.partial_sums,
        width: width as u32,
        eps: EPS,
    };
    let blocks = lab.kernels.blocks(rows, 8);
    // SAFETY: addresses are of the lab's buffers, made for more rows.
    let launch =
        || unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, blocks, &arguments) };
    launch()?;
    let out: Vec<bf16> = lab.read(b.x, count)?;
    let mut expected = Vec::with_capacity(count);
    for (hidden, y) in hidden.chunks(width).zip(y.chunks(width)) {
        let add = |y: &bf16| if adds { y.to_f32() } else { 0.0 };
        let row: Vec<f32> = hidden.iter().zip(y).map(|(h, y)| h + add(y)).collect();
        let mean = row.iter().map(|v| v * v).sum::<f32>() / width as f32;
        let scale = 1.0 / (mean + EPS).sqrt();
        expected.extend(row.iter().zip(&weight).map(|(v, w)| v * scale * w));
    }
    let bytes = count as u64 * if adds { 12 } else { 6 };
    let time = lab.time(bytes, launch)?;
    let case = format!("{} {rows} rows{}", lab.spec.id, if adds { " + y" } else { "" });
    let error = relative_error(&to_f32(&out), &expected);
    report(outcome("rms_norm", case, error, 0.004, Some(time)));
    Ok(())
}
