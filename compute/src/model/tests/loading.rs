//! Weights against the kit's sums, and every kind of file that is refused.

use super::tiny;
use crate::model::fixture::base_model;
use crate::model::values::Values;
use crate::model::{LoadProgress, Matrix, load_config, load_weights};
use half::bf16;
use memmap2::Mmap;
use safetensors::Dtype;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

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

#[test]
fn bf16_stays_in_its_file_unless_it_lies_askew() {
    let values: Vec<bf16> = (0..100).map(|i| bf16::from_f32(i as f32)).collect();
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytemuck::cast_slice(&values)).expect("written");
    // SAFETY: nobody else has the file.
    let file = Arc::new(unsafe { Mmap::map(&file) }.expect("mapped"));

    let part = Values::mapped(&file, &file[20..60]).expect("aligned");
    part.read_ahead();
    let copy = part.clone();
    drop(part);
    assert_eq!(copy[..], values[10..30]);
    assert!(Values::mapped(&file, &file[21..61]).is_none(), "not aligned");
    assert!(Values::mapped(&file, &file[20..61]).is_none(), "half a value");
    let elsewhere = file[20..60].to_vec();
    assert!(Values::mapped(&file, &elsewhere).is_none(), "not of this file");
}

#[test]
fn a_directory_of_shards_is_not_copied_where_it_is_bf16() {
    let dir = tempfile::tempdir().expect("a directory");
    tiny::write_directory(dir.path(), &tiny::config());
    tiny::write_shards(dir.path(), [Dtype::BF16, Dtype::F16], &tiny::tensors());
    let weights = load_weights(dir.path(), None, &LoadProgress::default()).expect("weights");
    let matrices = weights.layers.iter().flat_map(|layer| &layer.linears);
    let is_mapped = |matrix: &Matrix| format!("{:?}", matrix.data).contains("in a file");
    let places: BTreeSet<bool> = matrices.map(is_mapped).collect();
    assert_eq!(places, BTreeSet::from([false, true]));
    let config = load_config(dir.path(), None).expect("a configuration");
    assert_eq!(config.spec.vocab_size, weights.config.spec.vocab_size);
}
