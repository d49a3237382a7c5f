//! `lorikeet bench model`: a random model as a directory in Hugging Face's layout, as large as a real one.

use super::engine::Shape;
use anyhow::Context;
use lorikeet_compute::backend::cuda::check::Random;
use lorikeet_compute::model::{ModelConfig, TensorShape};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

/// Tensors are put into one shard until it is this large, in bytes: small enough that many cores write.
const SHARD: u64 = 1 << 30;
/// Values drawn and written at once.
const PIECE: usize = 1 << 20;
/// 1 in bf16.
const ONE: u16 = 0x3F80;
const END: &str = "<|end|>";

#[derive(clap::Args)]
#[command(after_help = "Example, 16 GB:\n  \
    lorikeet bench model ./random-8b --shape llama-3.1-8b\n  \
    lorikeet bench engine --device cuda --load-format safetensors --model ./random-8b --window 1")]
pub struct Args {
    /// Config, tokenizer and shards of safetensors are written into it
    dir: PathBuf,
    /// Sizes of the model
    #[arg(long, value_enum)]
    shape: Shape,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = ModelConfig::plain(args.shape.spec());
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    write(&args.dir, "config.json", &configuration(&config))?;
    write(&args.dir, "tokenizer.json", &tokenizer())?;
    write(&args.dir, "tokenizer_config.json", &tokenizer_config())?;

    let shards = shards(config.tensor_shapes());
    let name = |index: usize| format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
    let mut places = Map::new();
    for (index, tensors) in shards.iter().enumerate() {
        places.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name(index).into())));
    }
    let weights: u64 = shards.iter().flatten().map(TensorShape::weights).sum();
    println!("Writing {:.1} GB of weights into {}", weights as f64 * 2e-9, args.dir.display());
    let index = json!({ "metadata": { "total_size": 2 * weights }, "weight_map": places });
    write(&args.dir, "model.safetensors.index.json", &index)?;

    thread::scope(|scope| {
        let writing: Vec<_> = (0..)
            .zip(&shards)
            .map(|(index, tensors)| {
                let path = args.dir.join(name(index));
                scope.spawn(move || {
                    let failed = || format!("cannot write {}", path.display());
                    write_shard(&path, tensors, args.seed.wrapping_add(index as u64))
                        .with_context(failed)
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, anyhow::Result<()>>| {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        writing
            .into_iter()
            .map(join)
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<anyhow::Result<()>>()
    })?;
    Ok(())
}

fn write(dir: &Path, name: &str, content: &Value) -> anyhow::Result<()> {
    let path = dir.join(name);
    fs::write(&path, serde_json::to_vec_pretty(content)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// As many shards as it takes, each of tensors that follow one another.
fn shards(tensors: Vec<TensorShape>) -> Vec<Vec<TensorShape>> {
    let mut shards: Vec<Vec<TensorShape>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let bytes = 2 * tensor.weights();
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                room -= bytes;
                shard.push(tensor);
            }
            _ => {
                room = SHARD.saturating_sub(bytes);
                shards.push(vec![tensor]);
            }
        }
    }
    shards
}

/// <https://github.com/huggingface/safetensors#format>. Values are of the size that keeps activations in
/// range; norms are 1.
fn write_shard(path: &Path, tensors: &[TensorShape], seed: u64) -> anyhow::Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for TensorShape { name, shape } in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut random = Random::new(seed);
    for tensor in tensors {
        let mut left = tensor.weights() as usize;
        while left > 0 {
            let count = left.min(PIECE);
            left -= count;
            let bytes = match tensor.shape[..] {
                [_, inputs] => random.bf16_bytes(count, (3.0 / inputs as f32).sqrt()),
                _ => ONE.to_le_bytes().repeat(count),
            };
            file.write_all(&bytes)?;
        }
    }
    Ok(())
}

fn configuration(config: &ModelConfig) -> Value {
    let spec = &config.spec;
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": 256,
    })
}

/// A token for each byte, and one that ends an answer; the other rows of the table have none.
fn tokenizer() -> Value {
    // How byte-level vocabularies spell bytes: those that can be seen as themselves, others from U+0100 on.
    let is_seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut unseen = 0x100..;
    let spell = |byte: u8| match is_seen(byte) {
        true => Some(char::from(byte)),
        false => unseen.next().and_then(char::from_u32),
    };
    let bytes = (0..=255).filter_map(spell).map(String::from);
    let vocabulary: Map<String, Value> =
        bytes.chain([END.into()]).zip((0..).map(Value::from)).collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0",
        "added_tokens": [{
            "id": 256, "content": END, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    })
}

fn tokenizer_config() -> Value {
    let template = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
    json!({ "eos_token": END, "chat_template": template })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_compute::model::{ChatMessage, LoadProgress, load};

    #[test]
    fn what_is_written_is_a_model_that_a_node_loads() {
        let dir = tempfile::tempdir().expect("a directory");
        let args = Args { dir: dir.path().into(), shape: Shape::SmolLm2, seed: 1 };
        run(&args).expect("written");
        let model = load(dir.path(), Some("random"), &LoadProgress::default()).expect("a model");
        let spec = &model.weights.config.spec;
        assert_eq!((spec.num_layers, spec.vocab_size), (30, 49_152));
        let embedding = &model.weights.embedding.data;
        assert!(embedding[0] != embedding[1] && embedding.iter().all(|v| v.to_f32().abs() < 0.1));
        let prompt = model.prompt(&[ChatMessage::new("user", "Hé!")]).expect("a prompt");
        assert_eq!(prompt.len(), "Hé!\n".len());
    }

    #[test]
    fn a_tensor_larger_than_a_shard_has_one_for_itself() {
        let tensor =
            |name: &str, rows: usize| TensorShape { name: name.into(), shape: vec![rows, 1024] };
        let shards =
            shards(vec![tensor("a", 1), tensor("b", 1 << 20), tensor("c", 2), tensor("d", 3)]);
        let counts: Vec<usize> = shards.iter().map(Vec::len).collect();
        assert_eq!(counts, [1, 1, 2]);
    }
}
