//! The usage log's chain, and what a record must satisfy before it is billed.

use crate::ids::{AdapterVersionId, KeyId, ParseIdError, RequestId, TenantId};
use crate::link::{FinishReason, UsageKind, UsageRecord};
use sha2::{Digest, Sha256};

/// The chain value before the first record of a log.
pub const CHAIN_START: [u8; 32] = [0; 32];

/// The chain value after `payload`, given the one before it. A copy of a log that went its own
/// way shows as a batch whose `prev_hash` is not the one at the cursor.
pub fn chain(prev: &[u8; 32], payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(prev).chain_update(payload).finalize().into()
}

/// A final record whose fields have been read and hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalUsage {
    pub seq: u64,
    pub request_id: RequestId,
    pub tenant_id: TenantId,
    pub key_id: Option<KeyId>,
    pub adapter_version_id: Option<AdapterVersionId>,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    pub started_unix_ms: i64,
    pub first_token_unix_ms: Option<i64>,
    pub ended_unix_ms: i64,
    pub finish_reason: FinishReason,
    pub source: String,
    pub price_book_version: u32,
}

/// Why a record cannot be billed. Ingest keeps such a record aside and says so loudly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("not a usage record: {0}")]
    Decode(String),
    #[error(transparent)]
    Id(#[from] ParseIdError),
    #[error("record {seq} says {cached} cached tokens of {prompt} prompt tokens")]
    CachedExceedsPrompt { seq: u64, cached: u64, prompt: u64 },
    #[error("record {seq} ended before it started")]
    Time { seq: u64 },
}

/// Reads a payload; `Ok(None)` when it is of a kind that is not billed.
pub fn final_usage(record: &UsageRecord) -> Result<Option<FinalUsage>, UsageError> {
    if record.kind() != UsageKind::Final {
        return Ok(None);
    }
    let seq = record.seq;
    if record.cached_tokens > record.prompt_tokens {
        let (cached, prompt) = (record.cached_tokens, record.prompt_tokens);
        return Err(UsageError::CachedExceedsPrompt { seq, cached, prompt });
    }
    if record.ended_unix_ms < record.started_unix_ms {
        return Err(UsageError::Time { seq });
    }
    Ok(Some(FinalUsage {
        seq,
        request_id: record.request_id.parse()?,
        tenant_id: record.tenant_id.parse()?,
        key_id: optional(&record.key_id)?,
        adapter_version_id: optional(&record.adapter_version_id)?,
        prompt_tokens: record.prompt_tokens,
        cached_tokens: record.cached_tokens,
        completion_tokens: record.completion_tokens,
        started_unix_ms: record.started_unix_ms,
        first_token_unix_ms: (record.first_token_unix_ms != 0)
            .then_some(record.first_token_unix_ms),
        ended_unix_ms: record.ended_unix_ms,
        finish_reason: record.finish_reason(),
        source: record.source.clone(),
        price_book_version: record.price_book_version,
    }))
}

fn optional<T: std::str::FromStr<Err = ParseIdError>>(text: &str) -> Result<Option<T>, UsageError> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

/// The claims of the token by which a node authenticates on the link (EdDSA).
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct NodeClaims {
    /// Always [`NodeClaims::ISSUER`].
    pub iss: String,
    /// Always [`NodeClaims::AUDIENCE`].
    pub aud: String,
    /// node_<uuid>
    pub sub: String,
    /// Shown to operators.
    pub name: String,
    pub nbf: u64,
    pub exp: u64,
}

impl NodeClaims {
    pub const ISSUER: &'static str = "lorikeet-control-plane";
    pub const AUDIENCE: &'static str = "lorikeet-link";
}
