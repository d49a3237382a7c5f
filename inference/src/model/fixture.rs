//! The kit's base model, loaded once for all tests of this process, and its adapters as nodes get them.

pub(crate) mod families;

use super::{LoadedModel, load};
use lorikeet_contract::adapter::{ArtifactHeader, inspect, pack};
use std::fs;
use std::io::Cursor;
use std::sync::LazyLock;

pub(crate) fn base_model() -> &'static LoadedModel {
    static MODEL: LazyLock<LoadedModel> = LazyLock::new(|| {
        load(&lorikeet_kit::model_path(), None).expect("the kit's base model loads")
    });
    &MODEL
}

/// Header and whole file of one of the kit's adapters, verified and packed. None where the checkout
/// stands alone and lacks its weights.
pub(crate) fn packed_adapter(name: &str) -> Option<(ArtifactHeader, Vec<u8>)> {
    let dir = lorikeet_kit::adapter_dir(name);
    let config = fs::read(dir.join("adapter_config.json")).expect("reads");
    let Ok(weights) = fs::read(dir.join("adapter_model.safetensors")) else {
        assert!(!lorikeet_kit::is_complete(), "{name} has no weights");
        return None;
    };
    let mut weights = Cursor::new(weights);
    let inspected = inspect(&config, &mut weights, &base_model().weights.config.spec)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut file = Vec::new();
    pack(&inspected.plan, inspected.digest, &mut weights, &mut file).expect("packs");
    let header = ArtifactHeader::parse(&file, file.len() as u64).expect("a packed adapter");
    Some((header, file))
}
