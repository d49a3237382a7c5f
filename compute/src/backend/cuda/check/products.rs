//! Products with the weights: the kernel for few rows and cublasLt, in bf16 and with both sides in
//! e4m3, and the quantising itself. Some outputs are computed on the host, from what the device has.

use super::lab::{Lab, Random, outcome, relative_error, to_f32};
use super::{CheckError, Outcome};
use crate::backend::cuda::device::DeviceMemory;
use crate::backend::cuda::forward::is_few;
use crate::backend::cuda::gemm::{Gemm, Numbers, Shape};
use crate::backend::cuda::kernels::{FewRowsBf16, FewRowsF32, Fill, Quantise, RowAdapters, Start};
use crate::backend::cuda::layout::Group;
use half::bf16;

/// Computed on the host, too.
const OUTPUTS_CHECKED: usize = 150;

pub fn check(lab: &Lab, report: &mut dyn FnMut(Outcome)) -> Result<(), CheckError> {
    let mut gemm = Gemm::new(&lab.device, None)?;
    let head = (lab.spec.vocab_size, lab.spec.hidden_size);
    for (name, (outputs, inputs)) in Group::ALL
        .iter()
        .map(|g| (format!("{g:?}"), g.shape(&lab.spec)))
        .chain([("head".into(), head)])
    {
        let is_head = name == "head";
        let weights = Weights::new(lab, outputs, inputs)?;
        for rows in [1, 3, 8, 32] {
            let kinds: &[Numbers] = match (is_head, rows) {
                (true, _) => &[Numbers::Bf16ToF32],
                (false, 1 | 32) => &[Numbers::Bf16, Numbers::E4m3ToBf16],
                (false, _) => &[Numbers::Bf16],
            };
            for &numbers in kinds {
                let shape = Shape { outputs, inputs, rows, numbers };
                product(lab, &mut gemm, &name, &weights, shape, report)?;
            }
        }
    }
    Ok(())
}

struct Weights {
    bf16: DeviceMemory,
    e4m3: DeviceMemory,
    scales: DeviceMemory,
}

impl Weights {
    fn new(lab: &Lab, outputs: u32, inputs: u32) -> Result<Self, CheckError> {
        let count = u64::from(outputs) * u64::from(inputs);
        let weights = Self {
            bf16: lab.device.allocate("device memory", count * 2)?,
            e4m3: lab.device.allocate("device memory", count)?,
            scales: lab.device.allocate("device memory", u64::from(outputs) * 4)?,
        };
        let fill = Fill { out: weights.bf16.address(), count, seed: 3, scale: 0.7 };
        // SAFETY: of this size.
        unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, 1000, &fill) }?;
        let quantise = Quantise {
            step: 0,
            x: weights.bf16.address(),
            out: weights.e4m3.address(),
            scales: weights.scales.address(),
            rows: outputs,
            width: inputs,
        };
        // SAFETY: of these sizes.
        unsafe {
            lab.kernels.launch(&lab.stream, Start::Afterwards, outputs.min(1000), &quantise)
        }?;
        Ok(weights)
    }

    /// One output's weights.
    fn row(
        &self,
        lab: &Lab,
        output: u32,
        inputs: u32,
        numbers: Numbers,
    ) -> Result<Vec<f32>, CheckError> {
        let at = u64::from(output) * u64::from(inputs);
        match numbers {
            Numbers::Bf16 | Numbers::Bf16ToF32 => {
                let row: Vec<bf16> = lab.read(self.bf16.address() + at * 2, inputs as usize)?;
                Ok(to_f32(&row))
            }
            Numbers::E4m3ToBf16 => {
                let row: Vec<u8> = lab.read(self.e4m3.address() + at, inputs as usize)?;
                let scale: Vec<f32> = lab.read(self.scales.address() + u64::from(output) * 4, 1)?;
                Ok(row.into_iter().map(|v| e4m3(v) * scale[0]).collect())
            }
        }
    }
}

fn product(
    lab: &Lab,
    gemm: &mut Gemm,
    name: &str,
    weights: &Weights,
    shape: Shape,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let Shape { outputs, inputs, rows, numbers } = shape;
    let b = &lab.buffers;
    let x = Random::new(11).bf16s(rows as usize * inputs as usize, 1.5);
    lab.write(b.activation, &x)?;
    let is_8 = numbers == Numbers::E4m3ToBf16;
    let mut inputs_used = to_f32(&x);
    if is_8 {
        let quantise = Quantise {
            step: 0,
            x: b.activation,
            out: b.x8,
            scales: b.x_scales,
            rows,
            width: inputs,
        };
        // SAFETY: addresses are of the lab's buffers, made for more rows.
        let launch =
            || unsafe { lab.kernels.launch(&lab.stream, Start::Afterwards, rows, &quantise) };
        launch()?;
        let scales: Vec<f32> = lab.read(b.x_scales, rows as usize)?;
        let x8: Vec<u8> = lab.read(b.x8, x.len())?;
        let scaled = x8.iter().enumerate().map(|(i, v)| e4m3(*v) * scales[i / inputs as usize]);
        let quantised: Vec<f32> = scaled.collect();
        let error = relative_error(&quantised, &inputs_used);
        let time = lab.time(x.len() as u64 * 3, launch)?;
        let case = format!("{} {name} {rows} rows", lab.spec.id);
        report(outcome("quantise", case, error, 0.03, Some(time)));
        inputs_used = quantised;
    }
    let (from, input) = if is_8 { (&weights.e4m3, b.x8) } else { (&weights.bf16, b.activation) };
    let to = if numbers == Numbers::Bf16ToF32 { b.logits } else { b.y };
    if !is_few(shape) {
        gemm.plan(&lab.stream, shape, &[from.address()], input, to)?;
    }
    let run = || -> Result<(), _> {
        let (w, blocks) = (from.address(), lab.kernels.few_rows_blocks(outputs, 0));
        let start = Start::Afterwards;
        match numbers {
            // SAFETY: addresses are of the lab's buffers and of the weights, of these sizes.
            _ if !is_few(shape) => unsafe { gemm.multiply(&lab.stream, shape, w, input, to) },
            Numbers::Bf16ToF32 => {
                let few = FewRowsF32 { weights: w, x: input, y: to, outputs, inputs, rows };
                // SAFETY: as above.
                unsafe { lab.kernels.launch(&lab.stream, start, blocks, &few) }
            }
            _ => {
                let few = FewRowsBf16 {
                    weights: w,
                    x: input,
                    y: to,
                    outputs,
                    inputs,
                    rows,
                    adapters: RowAdapters::default(),
                };
                // SAFETY: as above.
                unsafe { lab.kernels.launch(&lab.stream, start, blocks, &few) }
            }
        }
    };
    run()?;
    let count = rows as usize * outputs as usize;
    let result: Vec<f32> = match numbers {
        Numbers::Bf16ToF32 => lab.read(to, count)?,
        _ => to_f32(&lab.read::<bf16>(to, count)?),
    };
    let (mut out, mut expected) = (Vec::new(), Vec::new());
    let mut random = Random::new(12);
    for index in 0..OUTPUTS_CHECKED {
        let output = match index {
            0 => outputs - 1,
            _ => random.below(outputs.into()) as u32,
        };
        let w = weights.row(lab, output, inputs, numbers)?;
        let scale: Vec<f32> = match is_8 {
            true => lab.read(weights.scales.address() + u64::from(output) * 4, 1)?,
            false => vec![1.0],
        };
        for (row, x) in inputs_used.chunks(inputs as usize).enumerate() {
            let row_scale =
                if is_8 { lab.read::<f32>(b.x_scales + row as u64 * 4, 1)?[0] } else { 1.0 };
            out.push(result[row * outputs as usize + output as usize] * scale[0] * row_scale);
            expected.push(w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>() as f32);
        }
    }
    let bytes = u64::from(outputs) * u64::from(inputs) * if is_8 { 1 } else { 2 };
    let time = lab.time(bytes, run)?;
    let how = if is_few(shape) { "few_rows" } else { "cublasLt" };
    let case = format!("{} {name} {rows} rows, {numbers:?}", lab.spec.id);
    let error = relative_error(&out, &expected);
    report(outcome(how, case, error, 0.004, Some(time)));
    Ok(())
}

/// The value of an e4m3 (Micikevicius et al., 2022, table 1): no infinities, one NaN of each sign.
fn e4m3(v: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(v >> 3 & 15), f32::from(v & 7));
    let magnitude = match (exponent, v & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if v & 0x80 == 0 { magnitude } else { -magnitude }
}
