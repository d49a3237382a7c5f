//! Weights against the kit's sums, and every kind of file that is refused.

use crate::model::fixture::base_model;
use half::bf16;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Expected {
    shape: Vec<usize>,
    sha256: String,
    first4: [f32; 4],
}

#[test]
fn every_tensor_of_the_gguf_is_the_canonical_one() {
    let path = lorikeet_kit::dir().join("base/tensors.json");
    let expected: BTreeMap<String, Expected> = lorikeet_kit::read_json(&path);
    assert_eq!(expected.len(), 272);

    let tensors = base_model().weights.tensors();
    assert!(tensors.keys().eq(expected.keys()));
    for (name, expected) in &expected {
        let data = &tensors[name];
        assert_eq!(data.len(), expected.shape.iter().product::<usize>(), "{name}");
        let first: Vec<f32> = data[..4].iter().map(|v| v.to_f32()).collect();
        let nearest = expected.first4.map(|v| bf16::from_f32(v).to_f32());
        assert_eq!(first, nearest, "{name}");
        let sum = Sha256::digest(bytemuck::cast_slice::<bf16, u8>(data));
        assert_eq!(hex::encode(sum), expected.sha256, "{name}");
    }
}
