//! A request and what its reader sees.

use super::harness::{key_id, tenant};
use crate::adapters::AdapterManifest;
use crate::engine::{EngineEvent, EngineRequest, FinishReason, RequestError, Usage};
use crate::share::TenantShare;
use lorikeet_compute::backend::SampledToken;
use lorikeet_compute::sampling::{LogitRules, SamplingParams};
use lorikeet_contract::RequestId;
use std::sync::Arc;
use tokio::sync::mpsc;

#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Finished(FinishReason, Usage),
    Failed(RequestError, Usage),
}

impl End {
    pub fn usage(&self) -> Usage {
        match self {
            End::Finished(_, usage) | End::Failed(_, usage) => *usage,
        }
    }
}

/// What a request's reader has seen.
pub struct Reader {
    pub id: RequestId,
    events: mpsc::Receiver<EngineEvent>,
    pub tokens: Vec<u32>,
    /// Of its prompt, since it runs.
    pub cached: Option<u32>,
    /// Of its prompt.
    pub scores: Option<Vec<SampledToken>>,
    pub end: Option<End>,
}

impl Reader {
    pub fn read(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            assert!(self.end.is_none(), "an event after the last one");
            match event {
                EngineEvent::Started { cached_tokens, .. } => {
                    assert!(self.cached.is_none() && self.tokens.is_empty(), "once, and first");
                    self.cached = Some(cached_tokens);
                }
                EngineEvent::Prompt(scores) => {
                    assert!(
                        self.scores.is_none() && self.tokens.is_empty(),
                        "once, before any token"
                    );
                    self.scores = Some(scores);
                }
                EngineEvent::Token(token) => self.tokens.push(token.token),
                EngineEvent::Finished { reason, usage } => {
                    self.end = Some(End::Finished(reason, usage));
                }
                EngineEvent::Failed { error, usage } => {
                    self.end = Some(End::Failed(error, usage));
                }
            }
        }
        if let Some(end) = &self.end {
            assert_eq!(end.usage().completion_tokens as usize, self.tokens.len());
            assert_eq!(end.usage().cached_tokens, self.cached.unwrap_or_default());
        }
    }

    pub fn reason(&self) -> Option<FinishReason> {
        match self.end {
            Some(End::Finished(reason, _)) => Some(reason),
            _ => None,
        }
    }

    pub fn error(&self) -> Option<&RequestError> {
        match &self.end {
            Some(End::Failed(error, _)) => Some(error),
            _ => None,
        }
    }

    pub fn usage(&self) -> Usage {
        self.end.as_ref().map(End::usage).expect("the request has ended")
    }
}

/// A request for so many tokens of an answer that nothing else ends.
pub fn request(
    tenant_id: u8,
    adapter: Option<&Arc<AdapterManifest>>,
    prompt: &[u32],
    max_tokens: u32,
) -> (EngineRequest, Reader) {
    let (sender, events) = mpsc::channel(max_tokens as usize + 3);
    let request = EngineRequest {
        id: RequestId::new(),
        tenant: tenant(tenant_id),
        share: TenantShare::default(),
        key: Some(key_id(tenant_id)),
        adapter: adapter.cloned(),
        prompt: prompt.to_vec(),
        params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        rules: LogitRules::default(),
        guide: None,
        max_tokens,
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        scores_prompt: false,
        deadline: None,
        events: sender,
    };
    let reader = Reader {
        id: request.id,
        events,
        tokens: Vec::new(),
        cached: None,
        scores: None,
        end: None,
    };
    (request, reader)
}
