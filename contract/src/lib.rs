//! What the planes say to each other, and the rules both must apply alike.
//!
//! Nothing here does I/O, reads a clock or knows an async runtime: every function is of its
//! arguments, so that the control plane's verifier and a node's loader cannot disagree.

pub mod adapter;
pub mod base_model;
pub mod digest;
pub mod ids;
pub mod key;
pub mod link;
pub mod manifest;
pub mod money;
pub mod rate;
pub mod usage;

pub use base_model::{BaseModelSpec, Linear};
pub use digest::{AdapterDigest, ArtifactDigest, ContentDigest, ContentHasher, WeightsDigest};
pub use ids::{
    AdapterId, AdapterVersionId, AliasId, KeyId, NodeId, RequestId, TenantId, UploadId, UserId,
};
