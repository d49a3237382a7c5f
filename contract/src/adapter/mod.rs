//! Adapters in PEFT's format: what is served, what is refused and why, and the packed layout
//! that nodes load. One piece of code, used by the control plane's verifier before anything is
//! stored and by a node's loader before anything is served.
//!
//! ```text
//! adapter_config.json ──config──┐
//!                               ├─ check ──> AdapterPlan ── pack ──> artifact file ── artifact::parse
//! safetensors header ──header───┘
//! ```

pub mod artifact;

pub use artifact::{ArtifactHeader, Dtype, LAYOUT_VERSION, ModuleEntry, TensorRef};
