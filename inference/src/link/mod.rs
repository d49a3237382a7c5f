//! The node's end of the link to the control plane: it follows the manifest, keeps it on disk, and
//! serves from it whether the control plane is there or not.
//!
//! ```text
//! uplink ── attach ── keeper ──┬── manifest (swapped whole; what requests read) ── view, denied
//!    └───── usage::ship        └── store (snapshot and deltas on disk)
//! ```

mod attach;
mod backoff;
mod decode;
mod denied;
mod keeper;
mod manifest;
mod residency;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
mod uplink;
mod view;

pub use attach::{Link, Presentation};
pub use backoff::Backoff;
pub use denied::DenySet;
pub use keeper::Keeper;
pub use manifest::{Current, Manifest};
pub use uplink::{Client, Uplink, UplinkError};
pub use view::{
    Adapter, AdapterVersion, Key, ManifestView, Tenant, TenantLimits, VersionState, Withdrawn,
};
