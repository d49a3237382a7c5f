//! The kit's base model, loaded once for all tests of this process.

use super::{LoadedModel, load};
use std::sync::LazyLock;

pub(crate) fn base_model() -> &'static LoadedModel {
    static MODEL: LazyLock<LoadedModel> = LazyLock::new(|| {
        load(&lorikeet_kit::model_path(), None).expect("the kit's base model loads")
    });
    &MODEL
}
