//! What async code and the engine thread say to each other.

use crate::adapters::AdapterManifest;
use crate::guidance::{GuidanceError, Guide};
use crate::share::TenantShare;
use lorikeet_compute::backend::SampledToken;
use lorikeet_compute::sampling::{LogitRules, SamplingParams};
use lorikeet_contract::{KeyId, RequestId, TenantId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A request that has been authenticated, resolved, templated and tokenized.
pub struct EngineRequest {
    pub id: RequestId,
    pub tenant: TenantId,
    /// The tenant's, as the manifest has it now.
    pub share: TenantShare,
    /// The API key it came with; a revoked key ends the requests that run under it.
    pub key: Option<KeyId>,
    /// None: the base model.
    pub adapter: Option<Arc<AdapterManifest>>,
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
    pub rules: LogitRules,
    /// The grammar to follow.
    pub guide: Option<Guide>,
    pub max_tokens: u32,
    /// End the sequence when drawn; the token itself is reported and counted.
    pub stop_tokens: Vec<u32>,
    /// The model's own end tokens ([`EngineConfig::eos_tokens`](super::EngineConfig)) do not end
    /// the sequence; `stop_tokens` still do.
    pub ignore_eos: bool,
    pub logprobs: Option<u8>,
    /// The prompt's tokens are scored, too ([`EngineEvent::Prompt`]).
    pub scores_prompt: bool,
    /// The request fails with [`RequestError::Deadline`] when it has not ended by then.
    pub deadline: Option<Instant>,
    /// Must hold `max_tokens + 2` events, and one more where the prompt is scored: the engine never waits for a reader. A full or closed
    /// channel cancels the request.
    pub events: mpsc::Sender<EngineEvent>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum EngineEvent {
    /// It runs. Comes before any token, so that these are known of requests that are cut short, too.
    Started {
        /// Of the prompt, taken from the prefix cache.
        cached_tokens: u32,
        /// As in [`Usage`].
        queue: Duration,
        adapter_load: Duration,
    },
    /// The prompt's tokens with their log probabilities; the first has none. Comes before any token,
    /// where it was asked for.
    Prompt(Vec<SampledToken>),
    /// The next token. Tokens arrive in order, without gaps.
    Token(SampledToken),
    /// Last event of a request that ended well.
    Finished { reason: FinishReason, usage: Usage },
    /// Last event of one that did not. Tokens delivered before stay counted in `usage`.
    Failed { error: RequestError, usage: Usage },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, or the end of the grammar.
    Stop,
    /// `max_tokens`, the context length, or all of the node's KV blocks.
    Length,
    Cancelled,
}

/// Counts and times of one request, as the engine saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Of the prompt, taken from the prefix cache.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    /// From submission to the first scheduled row.
    pub queue: Duration,
    /// Of the queue time, spent waiting for the adapter.
    pub adapter_load: Duration,
}

/// Why a request failed after it was accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The adapter's bytes could not be fetched or are not what the manifest says.
    #[error("the adapter could not be loaded: {0}")]
    AdapterLoad(String),
    #[error("the request did not end before its deadline")]
    Deadline,
    /// Its adapter was there, or it wanted none.
    #[error("the request did not begin within {seconds} s")]
    QueueTimeout { seconds: u64 },
    #[error("{error}")]
    Guidance { parameter: &'static str, error: GuidanceError },
    #[error("the prompt needs {needed} KV blocks, the node has {available}")]
    TooLarge { needed: u32, available: u32 },
    #[error("access was revoked while the request ran")]
    Revoked,
    /// A panic or a device error; every request in flight ends with it.
    #[error("the engine stopped: {0}")]
    Engine(String),
}

/// Why a request was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the node's queue is full")]
    QueueFull,
    /// The rest of the queue is kept for others.
    #[error("the tenant has too many requests on this node")]
    TenantQueueFull,
    #[error("the engine is not running")]
    Stopped,
    #[error("the prompt is empty")]
    EmptyPrompt,
}
