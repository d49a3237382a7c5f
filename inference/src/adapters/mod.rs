//! Adapters on their way from object storage to the device.

mod disk;
mod fetch;
mod host;
mod index;
pub mod loader;
pub mod residency;
pub mod store;

pub use lorikeet_compute::backend::AdapterKey;
pub use residency::{
    AdapterReport, Pin, PinState, ResidencyConfig, ResidencyReport, ResidencyState, TierUse,
};
pub use store::{LocalStore, ObjectError, ObjectStore, S3Config, S3Store};

use lorikeet_contract::ArtifactDigest;

/// What a node must know before it loads an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterManifest {
    pub key: AdapterKey,
    pub object_key: String,
    /// Of the packed file.
    pub bytes: u64,
    pub artifact_digest: ArtifactDigest,
    pub max_rank: u32,
}

/// A verified file in the node's disk cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CachedFile {
    pub key: AdapterKey,
    pub artifact_digest: ArtifactDigest,
    pub bytes: u64,
}

impl CachedFile {
    /// The file that a manifest names.
    pub fn of(manifest: &AdapterManifest) -> Self {
        Self { key: manifest.key, artifact_digest: manifest.artifact_digest, bytes: manifest.bytes }
    }
}
