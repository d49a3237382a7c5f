//! Made-up adapters in PEFT's format, for tests and load generators: any shape, random values.

use super::artifact::Dtype;
use super::tensor_name::module_path;
use crate::base_model::{BaseModelSpec, Linear};
use crate::digest::WeightsDigest;
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// The shapes of SmolLM2-135M-Instruct, with a made-up hash of its weights.
pub fn smollm2_135m() -> BaseModelSpec {
    BaseModelSpec {
        id: "SmolLM2-135M-Instruct".into(),
        weights_digest: WeightsDigest([7; 32]),
        architecture: "llama".into(),
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        vocab_size: 49152,
        context_length: 8192,
    }
}

/// What to make. The same fields give the same bytes.
#[derive(Debug, Clone)]
pub struct RandomAdapter {
    pub rank: u32,
    pub alpha: u32,
    pub targets: Vec<Linear>,
    pub dtype: Dtype,
    pub use_rslora: bool,
    pub use_dora: bool,
    pub seed: u64,
}

impl Default for RandomAdapter {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16,
            targets: vec![Linear::QProj, Linear::VProj],
            dtype: Dtype::BF16,
            use_rslora: false,
            use_dora: false,
            seed: 0,
        }
    }
}

/// The bytes of adapter_config.json and adapter_model.safetensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterFiles {
    pub config: Vec<u8>,
    pub weights: Vec<u8>,
}

impl RandomAdapter {
    /// Files of an adapter for every layer of `base`. Values are small enough to leave the base's
    /// answers fluent; magnitudes (DoRA) lie around 1.
    pub fn files(&self, base: &BaseModelSpec) -> AdapterFiles {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let rank = self.rank as usize;
        let mut tensors = Vec::new();
        for layer in 0..base.num_layers {
            for linear in &self.targets {
                let (out, input) = base.shape(*linear);
                let path = format!("base_model.model.{}", module_path(layer, *linear));
                let spread = 0.05;
                let a = self.values(&mut rng, rank * input, -spread..spread);
                tensors.push((format!("{path}.lora_A.weight"), vec![rank, input], a));
                let b = self.values(&mut rng, out * rank, -spread..spread);
                tensors.push((format!("{path}.lora_B.weight"), vec![out, rank], b));
                if self.use_dora {
                    let magnitude = self.values(&mut rng, out, 0.5..1.5);
                    tensors.push((format!("{path}.lora_magnitude_vector"), vec![out], magnitude));
                }
            }
        }
        let dtype = match self.dtype {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
        };
        AdapterFiles { config: self.config(base), weights: safetensors(dtype, &tensors) }
    }

    fn config(&self, base: &BaseModelSpec) -> Vec<u8> {
        let targets: Vec<_> = self.targets.iter().map(|l| l.as_str()).collect();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base.id,
            "bias": "none",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": targets,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
        })
        .to_string()
        .into_bytes()
    }

    fn values(&self, rng: &mut StdRng, count: usize, range: std::ops::Range<f32>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count * self.dtype.size());
        for _ in 0..count {
            let value = rng.random_range(range.clone());
            match self.dtype {
                Dtype::F32 => bytes.extend_from_slice(&value.to_le_bytes()),
                Dtype::F16 => bytes.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
                Dtype::BF16 => bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
            }
        }
        bytes
    }
}

/// A safetensors file of `(name, shape, bytes)`, in the given order.
pub fn safetensors(dtype: &str, tensors: &[(String, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for (name, shape, bytes) in tensors {
        let end = at + bytes.len();
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&json);
    for (_, _, bytes) in tensors {
        file.extend_from_slice(bytes);
    }
    file
}
