//! Adapters in PEFT's format: what is served, what is refused and why, and the packed layout
//! that nodes load. One piece of code, used by the control plane before anything is stored and
//! by a node's loader before anything is served.
//!
//! ```text
//! file names and sizes ── files::check
//! adapter_config.json ─── AdapterConfig::parse ─┐
//!                                               ├─ AdapterPlan::new ─┐
//! first bytes, length ─── Header::parse ────────┘                    ├─ pack ──> packed file
//! all bytes ───────────── content::digest (refuses NaN and Inf) ─────┘
//! ```
//! The first three steps need no tensor data, so an upload can be refused before its bulk is sent.

pub mod artifact;
pub mod check;
pub mod config;
pub mod content;
mod error;
pub mod files;
mod json;
pub mod pack;
pub mod safetensors;
mod target;
mod tensor_name;
pub mod testing;
mod values;

#[cfg(test)]
mod tests;

pub use artifact::{ArtifactHeader, Dtype, LAYOUT_VERSION, ModuleEntry, TensorRef};
pub use check::{AdapterPlan, PlannedModule};
pub use config::AdapterConfig;
pub use content::{ContentError, Inspected, inspect};
pub use error::AdapterError;
pub use pack::{PackedArtifact, pack};
pub use safetensors::{Header, TensorInfo};
