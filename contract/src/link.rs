//! The generated messages and services of `proto/lorikeet/link/v1/link.proto`.

#![expect(
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code is not ours to style"
)]
tonic::include_proto!("lorikeet.link.v1");

/// Spoken by this build. A peer one version away is accepted.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest gRPC message either side accepts, in bytes: a snapshot chunk plus its frame.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// A snapshot is cut into chunks whose payloads sum to at most this, in bytes.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;

/// How often either end of `Attach` says that it lives, when it has nothing else to say.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(5);

/// An end that has heard nothing for this long takes the stream for dead.
pub const SILENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Most records in one `UsageBatch`; a larger one is refused with `invalid_argument`.
pub const MAX_USAGE_RECORDS: usize = 4096;

/// Metadata of the `failed_precondition` with which `ShipUsage` answers a batch that starts past
/// the cursor: the cursor, in decimal. The node goes on from the record after it, which after a
/// database restore is one it had shipped before.
pub const USAGE_CURSOR_METADATA: &str = "lorikeet-usage-cursor";

/// True when `peer` can be spoken to: equal, or one version forwards or back.
pub fn is_compatible(peer: u32) -> bool {
    peer.abs_diff(PROTOCOL_VERSION) <= 1 && peer > 0
}
