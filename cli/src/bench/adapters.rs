//! `lorikeet bench adapters`: random adapters as files, for this system and for llama.cpp alike.

use super::engine::Shape;
use anyhow::Context;
use lorikeet_compute::backend::cuda::check::Random;
use lorikeet_contract::{BaseModelSpec, Linear};
use serde_json::{Map, json};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  lorikeet bench adapters ./adapters --shape smollm2 --gguf")]
pub struct Args {
    /// Each adapter becomes a directory in it, random-00 and so on, in the layout of PEFT
    dir: PathBuf,
    /// Sizes of the model
    #[arg(long, value_enum)]
    shape: Shape,
    #[arg(long, default_value_t = 16)]
    count: u32,
    #[arg(long, default_value_t = 16)]
    rank: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Beside each directory, the same numbers as a GGUF file for llama.cpp
    #[arg(long)]
    gguf: bool,
}

/// One matrix of one module, row by row.
struct Tensor {
    layer: u32,
    linear: Linear,
    is_b: bool,
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let spec = args.shape.spec();
    for index in 0..args.count {
        let name = format!("random-{index:02}");
        let tensors = tensors(&spec, args.rank as usize, args.seed + u64::from(index));
        let dir = args.dir.join(&name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": args.rank,
            "lora_alpha": 2 * args.rank, "bias": "none", "inference_mode": true,
            "target_modules": Linear::ALL.map(Linear::as_str),
        });
        write(&dir.join("adapter_config.json"), &serde_json::to_vec_pretty(&config)?)?;
        write(&dir.join("adapter_model.safetensors"), &safetensors(&tensors)?)?;
        if args.gguf {
            let alpha = 2.0 * args.rank as f32;
            write(&args.dir.join(name + ".gguf"), &gguf(&spec, &tensors, alpha))?;
        }
    }
    println!("{} adapters of rank {} in {}", args.count, args.rank, args.dir.display());
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Small updates: the model still speaks, and differently with each adapter.
fn tensors(spec: &BaseModelSpec, rank: usize, seed: u64) -> Vec<Tensor> {
    let mut random = Random::new(seed);
    let mut tensors = Vec::new();
    for layer in 0..spec.num_layers {
        for linear in Linear::ALL {
            let (outputs, inputs) = spec.shape(linear);
            let mut tensor = |is_b, rows: usize, columns: usize, scale| Tensor {
                layer,
                linear,
                is_b,
                rows,
                columns,
                values: random.floats(rows * columns, scale),
            };
            tensors.push(tensor(false, rank, inputs, (3.0 / inputs as f32).sqrt()));
            tensors.push(tensor(true, outputs, rank, 0.017));
        }
    }
    tensors
}

/// <https://github.com/huggingface/safetensors#format>
fn safetensors(tensors: &[Tensor]) -> serde_json::Result<Vec<u8>> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for tensor in tensors {
        let block = if is_attention(tensor.linear) { "self_attn" } else { "mlp" };
        let (layer, linear) = (tensor.layer, tensor.linear.as_str());
        let side = if tensor.is_b { "lora_B" } else { "lora_A" };
        let name = format!("base_model.model.model.layers.{layer}.{block}.{linear}.{side}.weight");
        let start = data.len();
        data.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes()));
        let shape = [tensor.rows, tensor.columns];
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name, entry);
    }
    let header = serde_json::to_vec(&header)?;
    let length = (header.len() as u64).to_le_bytes();
    Ok([&length[..], &header, &data].concat())
}

fn is_attention(linear: Linear) -> bool {
    matches!(linear, Linear::QProj | Linear::KProj | Linear::VProj | Linear::OProj)
}

/// <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, as llama.cpp's converter of adapters
/// writes it for the Llama family.
fn gguf(spec: &BaseModelSpec, tensors: &[Tensor], alpha: f32) -> Vec<u8> {
    const ALIGNMENT: usize = 32;
    const TYPE_F32: u32 = 6;
    const TYPE_STRING: u32 = 8;
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(4u64.to_le_bytes());
    for (key, value) in
        [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")]
    {
        text(&mut out, key);
        out.extend(TYPE_STRING.to_le_bytes());
        text(&mut out, value);
    }
    text(&mut out, "adapter.lora.alpha");
    out.extend(TYPE_F32.to_le_bytes());
    out.extend(alpha.to_le_bytes());

    let mut data = Vec::new();
    for tensor in tensors {
        let side = if tensor.is_b { "lora_b" } else { "lora_a" };
        text(&mut out, &format!("blk.{}.{}.weight.{side}", tensor.layer, gguf_name(tensor.linear)));
        out.extend(2u32.to_le_bytes());
        // The fastest dimension comes first.
        out.extend((tensor.columns as u64).to_le_bytes());
        out.extend((tensor.rows as u64).to_le_bytes());
        out.extend(0u32.to_le_bytes()); // f32
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0u8);
        out.extend((data.len() as u64).to_le_bytes());
        for row in 0..tensor.rows {
            let from = if tensor.is_b { interleaved(spec, tensor.linear, row) } else { row };
            let values = &tensor.values[from * tensor.columns..(from + 1) * tensor.columns];
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out.extend(data);
    out
}

fn gguf_name(linear: Linear) -> &'static str {
    match linear {
        Linear::QProj => "attn_q",
        Linear::KProj => "attn_k",
        Linear::VProj => "attn_v",
        Linear::OProj => "attn_output",
        Linear::GateProj => "ffn_gate",
        Linear::UpProj => "ffn_up",
        Linear::DownProj => "ffn_down",
    }
}

/// Which output stands at a row: llama.cpp keeps the two halves that a head's rotation pairs next to
/// one another.
fn interleaved(spec: &BaseModelSpec, linear: Linear, row: usize) -> usize {
    if !matches!(linear, Linear::QProj | Linear::KProj) {
        return row;
    }
    let dim = spec.head_dim as usize;
    let (head, at) = (row / dim, row % dim);
    head * dim + at % 2 * (dim / 2) + at / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_outputs_stand_in_pairs_and_others_stay() {
        let spec = Shape::SmolLm2.spec();
        let places =
            |linear| (0..4).map(|row| interleaved(&spec, linear, 64 + row)).collect::<Vec<_>>();
        assert_eq!(places(Linear::KProj), [64, 96, 65, 97]);
        assert_eq!(places(Linear::VProj), [64, 65, 66, 67]);
    }

    #[test]
    fn the_files_are_what_an_upload_takes() {
        let dir = tempfile::tempdir().expect("a directory");
        let args = Args {
            dir: dir.path().into(),
            shape: Shape::SmolLm2,
            count: 1,
            rank: 2,
            seed: 1,
            gguf: true,
        };
        run(&args).expect("written");
        let files = crate::client::adapter_files::AdapterFiles::open(&dir.path().join("random-00"));
        assert!(files.is_ok(), "{:?}", files.err());
        let gguf = fs::read(dir.path().join("random-00.gguf")).expect("a file");
        assert_eq!(&gguf[..8], b"GGUF\x03\0\0\0");
        // 30 layers of 7 linears of 2 matrices.
        assert_eq!(gguf[8..16], 420u64.to_le_bytes());
    }
}
