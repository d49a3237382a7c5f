//! Packing keeps every byte, and the digest is of the content alone.

use super::*;
use crate::adapter::artifact::ArtifactHeader;
use crate::adapter::testing::safetensors;
use crate::adapter::{Dtype, TensorInfo, TensorRef, pack};
use crate::digest::{AdapterDigest, ContentDigest};
use proptest::prelude::*;
use proptest::sample::subsequence;
use serde_json::json;

fn any_adapter() -> impl Strategy<Value = RandomAdapter> {
    let dtype = prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16)];
    let targets = subsequence(Linear::ALL.to_vec(), 1..=7);
    (1u32..9, 1u32..40, targets, dtype, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(rank, alpha, targets, dtype, use_rslora, use_dora, seed)| RandomAdapter {
            rank,
            alpha,
            targets,
            dtype,
            use_rslora,
            use_dora,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_packed_adapter_reads_back_byte_for_byte(adapter in any_adapter()) {
        let base = small_base();
        let files = adapter.files(&base);
        let Inspected { plan, digest } = inspect_files(&files, &base).unwrap();
        let mut packed = Vec::new();
        let written = pack(&plan, digest, &mut Cursor::new(&files.weights), &mut packed).unwrap();

        prop_assert_eq!(written.bytes, packed.len() as u64);
        prop_assert_eq!(written.digest, ContentDigest::of(&packed).into());
        let header = ArtifactHeader::parse(&packed, packed.len() as u64).unwrap();
        prop_assert_eq!(&header, &written.header);
        prop_assert_eq!(header.adapter_digest, digest);
        prop_assert_eq!(header.targets(), plan.targets());
        prop_assert_eq!(header.modules.len(), adapter.targets.len() * base.num_layers as usize);
        let uploaded = |t: &TensorInfo| &files.weights[t.offset as usize..][..t.bytes as usize];
        let stored = |t: &TensorRef| &packed[t.offset as usize..][..t.bytes as usize];
        for (m, p) in header.modules.iter().zip(&plan.modules) {
            prop_assert_eq!((m.layer, m.linear, m.rank), (p.layer, p.linear, p.rank));
            prop_assert_eq!(stored(&m.a), uploaded(&p.a));
            prop_assert_eq!(stored(&m.b), uploaded(&p.b));
            prop_assert_eq!(m.magnitude.is_some(), adapter.use_dora);
            let magnitudes = (m.magnitude.as_ref().map(stored), p.magnitude.as_ref().map(uploaded));
            prop_assert_eq!(magnitudes.0, magnitudes.1);
            let scale = if adapter.use_rslora {
                adapter.alpha as f32 / (adapter.rank as f32).sqrt()
            } else {
                adapter.alpha as f32 / adapter.rank as f32
            };
            prop_assert!((m.scale - scale).abs() <= scale * 1e-6);
        }
    }

    #[test]
    fn the_digest_counts_neither_the_order_of_tensors_nor_cosmetic_keys(
        order in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle(), seed: u64,
    ) {
        let base = small_base();
        let files = RandomAdapter { seed, ..RandomAdapter::default() }.files(&base);
        let reordered = AdapterFiles { weights: reorder(&files.weights, &order), ..files.clone() };
        let dressed = with_config(&reordered, json!({
            "lora_dropout": 0.5, "peft_version": "0.1", "inference_mode": true, "revision": "main",
            "base_model_name_or_path": "elsewhere", "target_modules": ["v_proj", "q_proj"],
            "future_key": null,
        }));
        let digest = digest_of(&files, &base);
        prop_assert_eq!(digest_of(&dressed, &base), digest);
        let louder = with_config(&files, json!({"lora_alpha": 17}));
        prop_assert_ne!(digest_of(&louder, &base), digest);
        let mut other_value = files.clone();
        *other_value.weights.last_mut().unwrap() ^= 0x80;
        prop_assert_ne!(digest_of(&other_value, &base), digest);
    }
}

fn digest_of(files: &AdapterFiles, base: &BaseModelSpec) -> AdapterDigest {
    inspect_files(files, base).unwrap().digest
}

/// The same tensors at other places of the file.
fn reorder(weights: &[u8], order: &[usize]) -> Vec<u8> {
    let header = Header::parse(weights, weights.len() as u64).unwrap();
    let tensor = |i: &usize| {
        let t = &header.tensors()[*i];
        let shape = t.shape.iter().map(|d| *d as usize).collect();
        (t.name.clone(), shape, weights[t.offset as usize..][..t.bytes as usize].to_vec())
    };
    assert_eq!(header.tensors().len(), order.len());
    safetensors("BF16", &order.iter().map(tensor).collect::<Vec<_>>())
}

#[test]
fn projections_that_read_one_input_have_their_a_tensors_together() {
    let base = small_base();
    let adapter = RandomAdapter { targets: Linear::ALL.to_vec(), ..RandomAdapter::default() };
    let files = adapter.files(&base);
    let Inspected { plan, digest } = inspect_files(&files, &base).unwrap();
    let header =
        pack(&plan, digest, &mut Cursor::new(&files.weights), &mut Vec::new()).unwrap().header;
    for layer in 0..base.num_layers {
        let of = |linear| {
            header.modules.iter().find(|m| m.layer == layer && m.linear == linear).unwrap()
        };
        let q = of(Linear::QProj);
        let ends_at = |t: &TensorRef| (t.offset + t.bytes).next_multiple_of(64);
        assert_eq!(ends_at(&q.a), of(Linear::KProj).a.offset);
        assert_eq!(ends_at(&of(Linear::KProj).a), of(Linear::VProj).a.offset);
        assert_eq!(ends_at(&of(Linear::VProj).a), q.b.offset);
        assert_eq!(ends_at(&of(Linear::GateProj).a), of(Linear::UpProj).a.offset);
    }
}

#[test]
fn older_key_names_are_read() {
    let base = small_base();
    let files = RandomAdapter::default().files(&base);
    let header = Header::parse(&files.weights, files.weights.len() as u64).unwrap();
    let renamed: Vec<_> = header
        .tensors()
        .iter()
        .map(|t| {
            let shape = t.shape.iter().map(|d| *d as usize).collect();
            let bytes = files.weights[t.offset as usize..][..t.bytes as usize].to_vec();
            (t.name.replace(".weight", ".default.weight"), shape, bytes)
        })
        .collect();
    let older = AdapterFiles { weights: safetensors("BF16", &renamed), ..files };
    assert_eq!(inspect_files(&older, &base).unwrap().plan.modules.len(), 4);
}
