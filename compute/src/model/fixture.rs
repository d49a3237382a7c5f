//! The kit's base model, loaded once for all tests of this process, and its adapters as nodes get them.

pub(crate) mod families;

use super::{LoadProgress, LoadedModel, load};
use lorikeet_contract::adapter::ArtifactHeader;
use std::sync::LazyLock;

pub(crate) fn base_model() -> &'static LoadedModel {
    static MODEL: LazyLock<LoadedModel> = LazyLock::new(|| {
        load(&lorikeet_kit::model_path(), None, &LoadProgress::default())
            .expect("the kit's base model loads")
    });
    &MODEL
}

/// Header and whole file of one of the kit's adapters, verified and packed. None where the checkout
/// stands alone and lacks its weights.
pub(crate) fn packed_adapter(name: &str) -> Option<(ArtifactHeader, Vec<u8>)> {
    lorikeet_kit::packed_adapter(name, &base_model().weights.config.spec)
}
