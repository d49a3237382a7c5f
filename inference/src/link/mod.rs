//! The node's end of the link to the control plane.

mod backoff;
mod uplink;

pub use backoff::Backoff;
pub use uplink::{Client, Uplink, UplinkError};
