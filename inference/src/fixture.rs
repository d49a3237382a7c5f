//! The kit's base model, loaded once for all tests of this process, its adapters as nodes get them, and
//! how often properties are tried.

use lorikeet_compute::model::{LoadProgress, LoadedModel, load};
use lorikeet_contract::adapter::ArtifactHeader;
use proptest::test_runner::Config as ProptestConfig;
use std::sync::LazyLock;

/// So many cases of a property, unless `PROPTEST_CASES` says otherwise.
pub fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(asked.unwrap_or(usual))
}

pub fn base_model() -> &'static LoadedModel {
    static MODEL: LazyLock<LoadedModel> = LazyLock::new(|| {
        let progress = LoadProgress::default();
        load(&lorikeet_kit::model_path(), None, &progress).expect("the kit's base model loads")
    });
    &MODEL
}

/// Header and whole file of one of the kit's adapters, verified and packed. None where the checkout
/// stands alone and lacks its weights.
pub fn packed_adapter(name: &str) -> Option<(ArtifactHeader, Vec<u8>)> {
    lorikeet_kit::packed_adapter(name, &base_model().weights.config.spec)
}
