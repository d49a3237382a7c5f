//! Random models and adapters small enough for the slow reference.

use crate::backend::AdapterKey;
use crate::backend::{HostAdapter, HostData};
use crate::model::{LayerWeights, Matrix, ModelConfig, ModelWeights};
use half::{bf16, f16};
use lorikeet_contract::adapter::{ArtifactHeader, Dtype, LAYOUT_VERSION, ModuleEntry, TensorRef};
use lorikeet_contract::{AdapterDigest, BaseModelSpec, Linear, TenantId, WeightsDigest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub fn model(seed: u64, tied: bool) -> ModelWeights {
    let mut rng = StdRng::seed_from_u64(seed);
    let spec = BaseModelSpec {
        id: "tiny".into(),
        weights_digest: WeightsDigest([0; 32]),
        architecture: "llama".into(),
        hidden_size: 80,
        intermediate_size: 112,
        num_layers: 3,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 40,
        vocab_size: 150,
        context_length: 256,
    };
    let mut matrix = |rows: usize, cols: usize| {
        let size = 1.5 / (cols as f32).sqrt();
        let data = (0..rows * cols).map(|_| bf16::from_f32(rng.random_range(-size..size)));
        Matrix { rows, cols, data: data.collect() }
    };
    let hidden = spec.hidden_size as usize;
    let layers = (0..spec.num_layers).map(|layer| LayerWeights {
        linears: Linear::ALL.map(|linear| {
            let (rows, cols) = spec.shape(linear);
            matrix(rows, cols)
        }),
        biases: Default::default(),
        head_norms: None,
        input_norm: vec![1.0 + layer as f32 * 0.1; hidden],
        post_attention_norm: vec![0.9; hidden],
    });
    let layers = layers.collect();
    let embedding = matrix(spec.vocab_size as usize, hidden);
    let lm_head = (!tied).then(|| matrix(spec.vocab_size as usize, hidden));
    let config = ModelConfig { tie_word_embeddings: tied, ..ModelConfig::plain(spec) };
    ModelWeights { config, embedding, layers, norm: vec![1.1; hidden], lm_head }
}

/// An adapter on some linears of some layers, each with a rank, a scale and a dtype of its own, and
/// DoRA on some.
pub fn adapter(seed: u64, spec: &BaseModelSpec) -> HostAdapter {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut file = File { bytes: vec![0; 4096] };
    let mut modules = Vec::new();
    for layer in 0..spec.num_layers {
        for linear in Linear::ALL {
            if rng.random_bool(0.3) {
                continue;
            }
            let (outputs, inputs) = spec.shape(linear);
            let rank = rng.random_range(1..20);
            let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][rng.random_range(0..3)];
            let dora = rng.random_bool(0.3);
            modules.push(ModuleEntry {
                layer,
                linear,
                rank: rank as u32,
                in_features: inputs as u32,
                out_features: outputs as u32,
                scale: rng.random_range(0.25..2.0),
                a: file.random(&mut rng, rank * inputs, dtype, -0.1..0.1),
                b: file.random(&mut rng, outputs * rank, dtype, -0.2..0.2),
                magnitude: dora.then(|| file.random(&mut rng, outputs, Dtype::F32, 0.5..1.5)),
            });
        }
    }
    host(modules, file.bytes)
}

pub fn host(modules: Vec<ModuleEntry>, file: Vec<u8>) -> HostAdapter {
    let digest = AdapterDigest([1; 32]);
    let header = ArtifactHeader {
        layout_version: LAYOUT_VERSION,
        adapter_digest: digest,
        base_weights_digest: WeightsDigest([0; 32]),
        modules,
    };
    let key = AdapterKey { tenant: TenantId::from_uuid(uuid::Uuid::nil()), digest };
    HostAdapter { key, header, data: HostData::File(Box::new(file)) }
}

struct File {
    bytes: Vec<u8>,
}

impl File {
    fn random(
        &mut self,
        rng: &mut StdRng,
        count: usize,
        dtype: Dtype,
        range: std::ops::Range<f32>,
    ) -> TensorRef {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let offset = self.bytes.len() as u64;
        for _ in 0..count {
            // Representable in every dtype, so that only the kernels' arithmetic differs.
            let value = f16::from_f32(bf16::from_f32(rng.random_range(range.clone())).to_f32());
            match dtype {
                Dtype::F32 => self.bytes.extend(value.to_f32().to_le_bytes()),
                Dtype::F16 => self.bytes.extend(value.to_le_bytes()),
                Dtype::BF16 => self.bytes.extend(bf16::from_f32(value.to_f32()).to_le_bytes()),
            }
        }
        TensorRef { dtype, offset, bytes: self.bytes.len() as u64 - offset }
    }
}
