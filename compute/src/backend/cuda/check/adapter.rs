//! Seeded random adapters, as the loader would hand them over.

use super::lab::Random;
use crate::backend::AdapterKey;
use crate::backend::cuda::layout::Group;
use crate::backend::{HostAdapter, HostData};
use half::bf16;
use lorikeet_contract::adapter::{ArtifactHeader, Dtype, ModuleEntry, TensorRef};
use lorikeet_contract::{AdapterDigest, BaseModelSpec, Linear, TenantId, WeightsDigest};

#[derive(Debug, Clone)]
pub struct AdapterShape {
    pub rank: u32,
    pub linears: Vec<Linear>,
    pub dora: bool,
    pub dtype: Dtype,
}

/// A packed adapter without its header's bytes; tensors stand in the order of layout 1. Updates are
/// about half as large as what they are added to.
pub fn random_adapter(spec: &BaseModelSpec, shape: &AdapterShape, seed: u64) -> HostAdapter {
    let mut random = Random::new(seed);
    let mut data = Vec::new();
    let mut modules = Vec::new();
    let mut tensor = |values: u64, scale: f32, offset: f32| {
        let start = (data.len() as u64).next_multiple_of(64);
        data.resize(start as usize, 0);
        for _ in 0..values {
            let value = random.float(scale) + offset;
            match shape.dtype {
                Dtype::F32 => data.extend(value.to_le_bytes()),
                Dtype::F16 => data.extend(half::f16::from_f32(value).to_le_bytes()),
                Dtype::BF16 => data.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
        TensorRef { dtype: shape.dtype, offset: start, bytes: data.len() as u64 - start }
    };
    for layer in 0..spec.num_layers {
        for group in Group::ALL {
            let linears: Vec<Linear> =
                group.linears().iter().copied().filter(|l| shape.linears.contains(l)).collect();
            let sizes = |linear| {
                let (outputs, inputs) = spec.shape(linear);
                (outputs as u64, inputs as u64)
            };
            let rank = u64::from(shape.rank);
            let a: Vec<TensorRef> = linears
                .iter()
                .map(|&l| tensor(rank * sizes(l).1, (3.0 / sizes(l).1 as f32).sqrt(), 0.0))
                .collect();
            let b: Vec<TensorRef> = linears
                .iter()
                .map(|&l| tensor(rank * sizes(l).0, 0.5 * (3.0 / rank as f32).sqrt(), 0.0))
                .collect();
            for ((&linear, a), b) in linears.iter().zip(a).zip(b) {
                let (outputs, inputs) = sizes(linear);
                modules.push(ModuleEntry {
                    layer,
                    linear,
                    rank: shape.rank,
                    in_features: inputs as u32,
                    out_features: outputs as u32,
                    scale: 0.75,
                    a,
                    b,
                    magnitude: shape.dora.then(|| tensor(outputs, 0.2, 1.0)),
                });
            }
        }
    }
    let mut digest = [0u8; 32];
    digest[..8].copy_from_slice(&seed.to_le_bytes());
    let digest = AdapterDigest(digest);
    let header = ArtifactHeader {
        layout_version: lorikeet_contract::adapter::artifact::LAYOUT_VERSION,
        adapter_digest: digest,
        base_weights_digest: WeightsDigest([0; 32]),
        modules,
    };
    let key = AdapterKey { tenant: TenantId::from_uuid(uuid::Uuid::nil()), digest };
    HostAdapter { key, header, data: HostData::File(Box::new(data)) }
}
