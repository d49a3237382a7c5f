//! One request from its admission to its final usage record.

use super::Api;
use super::answer::{Answer, Piece};
use super::auth::Caller;
use super::error::ApiError;
use super::models::{Target, resolve};
use super::request::ChatRequest;
use crate::engine::{EngineEvent, EngineRequest, FinishReason};
use crate::sampling::LogitRules;
use crate::usage::{Admission, Meter};
use lorikeet_contract::RequestId;
use lorikeet_contract::link::FinishReason as Billed;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Dropping it cancels the request: the engine sees its events unread, and the account closes with
/// what was delivered.
pub struct Generation {
    api: Arc<Api>,
    id: RequestId,
    events: mpsc::Receiver<EngineEvent>,
    answer: Answer,
    meter: Meter,
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
}

pub enum Progress {
    Piece(Piece),
    /// The answer is complete; the piece is its last.
    End(Piece, Ending),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Stop,
    Length,
}

/// Token counts of a finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub prompt: u32,
    /// Of the prompt.
    pub cached: u32,
    pub completion: u32,
}

impl Generation {
    /// Checks the request, hands it to the engine and opens its account: in this order, so that what is
    /// turned away for load leaves no record. Returns when the account is on the disk: from then on tokens
    /// may leave the node.
    pub async fn start(
        api: Arc<Api>,
        caller: &Caller,
        request: ChatRequest,
        id: RequestId,
    ) -> Result<Self, ApiError> {
        let target = resolve(&api.base.id, caller, &request.model)?;
        let (adapter_version_id, adapter) = match target {
            Target::Base => (None, None),
            Target::Adapter(version, manifest) => (Some(version), Some(manifest)),
        };
        let prompt = prompt(&api, request.messages).await?;
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let max_tokens = max_tokens(api.base.context_length, prompt_tokens, request.max_tokens)?;

        if !api.usage.is_writable() {
            return Err(ApiError::NoUsageLog);
        }
        // Room for every event there can be, so that the engine never waits.
        let (sender, events) = mpsc::channel(max_tokens as usize + 2);
        api.engine.try_submit(EngineRequest {
            id,
            tenant: caller.tenant,
            share: caller.limits().share(),
            key: Some(caller.key),
            adapter,
            prompt,
            params: request.params,
            rules: LogitRules::default(),
            max_tokens,
            stop_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: request.logprobs,
            deadline: None,
            events: sender,
        })?;
        // From here on an early return drops `events`, which cancels the request.
        let (meter, opened) = api.usage.admit(&Admission {
            request_id: id,
            tenant_id: caller.tenant,
            key_id: caller.key,
            adapter_version_id,
            base_weights_digest: api.base.weights_digest,
            prompt_tokens,
        })?;
        let answer = Answer::new(api.tokenizer.detokenizer(), request.stop);
        let generation = Self {
            api,
            id,
            events,
            answer,
            meter,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: 0,
        };
        // The engine may have been told of it before it had the request.
        if caller.has_lost_access(&generation.api.manifest.current()) {
            return Err(generation.fail(ApiError::Revoked).await);
        }
        match opened.wait().await {
            Ok(()) => Ok(generation),
            Err(error) => Err(generation.fail(error.into()).await),
        }
    }

    /// What comes next of the answer. Not to be called again after `End` or an error.
    pub async fn next(&mut self) -> Result<Progress, ApiError> {
        loop {
            match self.events.recv().await {
                Some(EngineEvent::Started { cached_tokens }) => {
                    self.cached_tokens = cached_tokens;
                    self.meter.note_cached(cached_tokens);
                }
                Some(EngineEvent::Token(token)) => {
                    self.completion_tokens += 1;
                    let piece = self.answer.push(&self.api.tokenizer, &token);
                    if piece.stopped {
                        // What the engine still does for it is nobody's any more.
                        self.events.close();
                        self.api.engine.cancel(self.id);
                        return Ok(Progress::End(piece, Ending::Stop));
                    }
                    if !piece.is_empty() {
                        return Ok(Progress::Piece(piece));
                    }
                }
                Some(EngineEvent::Finished { reason, .. }) => {
                    let piece = self.answer.finish();
                    let ending = match reason {
                        _ if piece.stopped => Ending::Stop,
                        FinishReason::Stop => Ending::Stop,
                        FinishReason::Length => Ending::Length,
                        FinishReason::Cancelled => return Err(ApiError::Stopped),
                    };
                    return Ok(Progress::End(piece, ending));
                }
                Some(EngineEvent::Failed { error, .. }) => {
                    tracing::warn!(request = %self.id, %error, "request failed");
                    return Err(error.into());
                }
                None => return Err(ApiError::Stopped),
            }
        }
    }

    /// Everything up to here is being accepted by the HTTP body.
    pub fn deliver(&self) -> Result<(), ApiError> {
        Ok(self.meter.deliver(self.completion_tokens)?)
    }

    /// Closes the account of an answer that was delivered whole. Returns when that is on the disk: only
    /// then may the response end.
    pub async fn complete(self, ending: Ending) -> Result<Counts, ApiError> {
        if let Err(error) = self.deliver() {
            return Err(self.fail(error).await);
        }
        let counts = Counts {
            prompt: self.prompt_tokens,
            cached: self.cached_tokens,
            completion: self.completion_tokens,
        };
        let reason = match ending {
            Ending::Stop => Billed::Stop,
            Ending::Length => Billed::Length,
        };
        self.meter.finish(reason).wait().await?;
        Ok(counts)
    }

    /// Closes the account of a request that failed, with what had been delivered, and gives the error
    /// back.
    pub async fn fail(self, error: ApiError) -> ApiError {
        let reason = match error {
            ApiError::Revoked => Billed::Revoked,
            _ => Billed::Error,
        };
        // While the log is not writable the record stays in memory; the client gets its error now.
        let _ = self.meter.finish(reason).wait().await;
        error
    }
}

/// Templates and tokenizes on a thread where a long text holds nobody up.
async fn prompt(
    api: &Arc<Api>,
    messages: Vec<crate::model::ChatMessage>,
) -> Result<Vec<u32>, ApiError> {
    let api = api.clone();
    let prompt =
        tokio::task::spawn_blocking(move || api.chat_template.prompt(&api.tokenizer, &messages));
    match prompt.await {
        Ok(prompt) => Ok(prompt?),
        Err(_) => Err(ApiError::Internal),
    }
}

fn max_tokens(limit: u32, prompt: u32, wanted: Option<u32>) -> Result<u32, ApiError> {
    let room = limit.saturating_sub(prompt);
    let completion = wanted.unwrap_or(room.max(1));
    if completion > room {
        return Err(ApiError::ContextLength { limit, prompt, completion });
    }
    Ok(completion)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_limit_gets_what_the_context_has_left() {
        assert_eq!(max_tokens(100, 40, None).ok(), Some(60));
        assert_eq!(max_tokens(100, 40, Some(60)).ok(), Some(60));
        let message = |prompt, wanted| max_tokens(100, prompt, wanted).map_err(|e| e.to_string());
        let error = message(40, Some(61)).expect_err("one too many");
        assert!(
            error.contains("100 tokens") && error.contains("101 tokens (40 in the messages, 61")
        );
        assert!(message(100, None).is_err() && message(u32::MAX, Some(1)).is_err());
    }
}
