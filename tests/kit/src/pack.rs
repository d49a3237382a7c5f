use crate::{adapter_dir, is_complete};
use lorikeet_contract::BaseModelSpec;
use lorikeet_contract::adapter::{ArtifactHeader, inspect, pack};
use std::fs;
use std::io::Cursor;

/// Header and whole file of one of the kit's adapters, verified against the base model and packed.
/// None where the checkout stands alone and lacks its weights.
pub fn packed_adapter(name: &str, base: &BaseModelSpec) -> Option<(ArtifactHeader, Vec<u8>)> {
    let dir = adapter_dir(name);
    let config = fs::read(dir.join("adapter_config.json")).expect("reads");
    let Ok(weights) = fs::read(dir.join("adapter_model.safetensors")) else {
        assert!(!is_complete(), "{name} has no weights");
        return None;
    };
    let mut weights = Cursor::new(weights);
    let inspected = inspect(&config, &mut weights, base).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut file = Vec::new();
    pack(&inspected.plan, inspected.digest, &mut weights, &mut file).expect("packs");
    let header = ArtifactHeader::parse(&file, file.len() as u64).expect("a packed adapter");
    Some((header, file))
}
