//! Adapters and their versions, as pages and the API show them and as nodes learn of them.

pub mod alias;
mod delete;
mod fail;
mod list;
mod resource;
mod standing;
mod version;

pub use delete::delete;
pub use fail::{Failure, fail, set_revision};
pub use list::{
    AdapterSummary, PinnableAdapter, base_model, find, list, pinnable, version, versions,
};
pub use resource::{Servable, pending, servable};
pub use standing::{Standing, set_disabled, set_pinned};
pub use version::{Version, VersionState, waiting_for};

/// The form of an adapter's name, `adapter_name_form` in the schema.
pub fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '_', '-'])
}
