//! One uploaded version of an adapter.

use lorikeet_contract::AdapterVersionId;
use serde::{Serialize, Serializer};
use std::fmt;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// Parts arrive.
    Uploading,
    /// Whole, being checked, or waiting for the first node to say which base model it serves.
    Verifying,
    /// In the manifest, not yet acknowledged by every connected node.
    Verified,
    /// Answers.
    Ready,
    /// Refused; the version's error says why.
    Failed,
    Deleted,
}

impl VersionState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uploading => "uploading",
            Self::Verifying => "verifying",
            Self::Verified => "verified",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
        }
    }

    /// True while something still happens to it.
    pub fn is_moving(self) -> bool {
        matches!(self, Self::Uploading | Self::Verifying | Self::Verified)
    }
}

/// What has to happen outside before the state can change; `no_node`: none has ever connected.
pub fn waiting_for(state: VersionState, no_node: bool) -> Option<&'static str> {
    let waits = state == VersionState::Verifying && no_node;
    waits.then_some("a node that says which base model it serves")
}

impl fmt::Display for VersionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for VersionState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl TryFrom<String> for VersionState {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let all = [
            Self::Uploading,
            Self::Verifying,
            Self::Verified,
            Self::Ready,
            Self::Failed,
            Self::Deleted,
        ];
        all.into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no state of a version"))
    }
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Version {
    pub id: Uuid,
    pub adapter_id: Uuid,
    pub version: i32,
    #[sqlx(try_from = "String")]
    pub state: VersionState,
    /// Why it failed, for its owner; with a code for programs.
    pub error: Option<String>,
    pub error_code: Option<String>,
    pub digest: Option<Vec<u8>>,
    /// Of the uploaded files.
    pub source_bytes: i64,
    /// The largest of its modules.
    pub rank: Option<i32>,
    pub targets: Vec<String>,
    pub parameters: Option<i64>,
    pub created_at: OffsetDateTime,
    pub verified_at: Option<OffsetDateTime>,
    pub ready_at: Option<OffsetDateTime>,
}

impl Version {
    pub const COLUMNS: &str = "id, adapter_id, version, state, error, error_code, digest, \
         source_bytes, rank, targets, parameters, created_at, verified_at, ready_at";

    pub fn id(&self) -> AdapterVersionId {
        AdapterVersionId::from_uuid(self.id)
    }
}
