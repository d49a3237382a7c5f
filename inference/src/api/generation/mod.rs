//! One request from its admission to its final usage record: one or more prompts, each answered by one
//! or more choices, every choice a sequence of the engine.

mod answer;
mod choice;
mod stop;

pub use answer::{Piece, PromptToken, TokenLogprob};

use super::Api;
use super::auth::Caller;
use super::deadline::{Deadline, SetBy};
use super::error::ApiError;
use super::models::Model;
use super::parameters::Parameters;
use super::timing::Timing;
use super::tools::ToolUse;
use crate::engine::{EngineEvent, FinishReason};
use crate::limits::Permit;
use crate::usage::{Admission, Meter};
use choice::Choices;
use lorikeet_contract::RequestId;
use lorikeet_contract::link::FinishReason as Billed;
use std::sync::Arc;
use std::time::Instant;

/// What is to be generated.
pub struct Work {
    pub model: Model,
    /// At least one; none of them empty.
    pub prompts: Vec<Vec<u32>>,
    pub parameters: Parameters,
    /// None: the answers are text.
    pub tools: Option<ToolUse>,
}

impl Work {
    /// Tokens of all choices together, where the client has named a most; else 0.
    fn longest_answers(&self) -> u64 {
        let choices = self.prompts.len() as u64 * u64::from(self.parameters.n);
        choices.saturating_mul(self.parameters.max_tokens.unwrap_or(0).into())
    }
}

/// Dropping it cancels the request: the engine sees its events unread, and the account closes with
/// what was delivered.
pub struct Generation {
    api: Arc<Api>,
    id: RequestId,
    deadline: Deadline,
    choices: Choices,
    meter: Meter,
    /// Its place among the tenant's, and the tokens reserved for it.
    permit: Option<Arc<Permit>>,
    counts: Counts,
    /// Of the choice that began first.
    timing: Option<Timing>,
    /// The prompts are read, and what is drawn behind them is nobody's.
    only_reads: bool,
    /// Whether some choice was cut short.
    cut: bool,
}

/// What one choice has grown by.
pub struct Progress {
    /// Counts the choices of the first prompt, then those of the second, and so on.
    pub choice: usize,
    pub piece: Piece,
    /// Set when the choice is complete; the piece is its last.
    pub ending: Option<Ending>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Stop,
    Length,
}

/// Token counts of a request. The prompts are counted once, however many choices share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub prompt: u32,
    /// Of the prompts.
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
        work: Work,
        id: RequestId,
        deadline: Deadline,
    ) -> Result<Self, ApiError> {
        if !api.usage.is_writable() {
            return Err(ApiError::NoUsageLog);
        }
        let compiled = match &work.parameters.grammar {
            None => None,
            Some(wanted) => {
                let compiled = api.guidance.compile(caller.tenant, &wanted.grammar).await;
                Some(compiled.map_err(|error| wanted.refused(error))?)
            }
        };
        let prompt = work.prompts.iter().map(|prompt| prompt.len() as u64).sum::<u64>();
        let permit = caller.permit.clone();
        if let Some(permit) = &permit {
            permit.reserve(prompt, work.longest_answers(), Instant::now())?;
        }
        let counts =
            Counts { prompt: u32::try_from(prompt).unwrap_or(u32::MAX), cached: 0, completion: 0 };
        let admission = Admission {
            request_id: id,
            tenant_id: caller.tenant,
            key_id: caller.key,
            adapter_version_id: work.model.version(),
            base_weights_digest: api.base.weights_digest,
            prompt_tokens: counts.prompt,
        };
        let only_reads = work.parameters.max_tokens == Some(0);
        let choices = Choices::start(&api, caller, work, compiled.as_deref(), id, deadline.at)
            .inspect_err(|_| {
                if let Some(permit) = &permit {
                    permit.withdraw();
                }
            })?;
        // From here on an early return drops `choices`, which cancels the request.
        let (meter, opened) = api.usage.admit(&admission)?;
        let generation = Self {
            api,
            id,
            deadline,
            choices,
            meter,
            permit,
            counts,
            timing: None,
            only_reads,
            cut: only_reads,
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

    /// What comes next of any choice. Not to be called again after an error, or when
    /// [all choices are complete](Self::is_complete).
    pub async fn next(&mut self) -> Result<Progress, ApiError> {
        loop {
            let (choice, event) = self.choices.next_event(&self.api.engine).await?;
            match event {
                EngineEvent::Started { cached_tokens, queue, adapter_load } => {
                    self.timing.get_or_insert(Timing { queue, adapter_load });
                    let of_prompt = if self.choices.leads(choice) { cached_tokens } else { 0 };
                    self.counts.cached += of_prompt;
                    self.meter.note_cached(self.counts.cached);
                    if let Some(course) = self.choices.course(choice) {
                        course.started(of_prompt, queue, adapter_load);
                    }
                    let prompt = self.choices.prompt(choice);
                    if !prompt.is_empty() {
                        let piece = Piece { prompt, ..Piece::default() };
                        return Ok(Progress { choice, piece, ending: None });
                    }
                }
                EngineEvent::Prompt(tokens) => {
                    let tokens = tokens.iter();
                    let prompt: Vec<PromptToken> =
                        tokens.map(|token| PromptToken::new(&self.api.tokenizer, token)).collect();
                    self.choices.keep_prompt(choice, prompt.clone());
                    let piece = Piece { prompt, ..Piece::default() };
                    return Ok(Progress { choice, piece, ending: None });
                }
                EngineEvent::Token(_) if self.only_reads => {
                    self.choices.ended(choice, "length");
                    let ending = Some(Ending::Length);
                    return Ok(Progress { choice, piece: Piece::default(), ending });
                }
                EngineEvent::Token(token) => {
                    if let Some(course) = self.choices.course(choice) {
                        course.token();
                    }
                    self.counts.completion += 1;
                    if let Some(permit) = &self.permit {
                        permit.generated(1);
                    }
                    let piece = self.choices.answer(choice).push(&self.api.tokenizer, &token);
                    if piece.stopped {
                        // What the engine still does for it is nobody's any more.
                        self.choices.close(choice, &self.api.engine);
                        return Ok(Progress { choice, piece, ending: Some(Ending::Stop) });
                    }
                    if !piece.is_empty() {
                        return Ok(Progress { choice, piece, ending: None });
                    }
                }
                EngineEvent::Finished { reason, .. } => {
                    let piece = self.choices.answer(choice).finish();
                    let ending = match reason {
                        _ if piece.stopped => Ending::Stop,
                        FinishReason::Stop => Ending::Stop,
                        FinishReason::Length => Ending::Length,
                        FinishReason::Cancelled => return Err(ApiError::Stopped),
                    };
                    self.cut |= ending == Ending::Length;
                    let outcome = if ending == Ending::Stop { "stop" } else { "length" };
                    self.choices.ended(choice, outcome);
                    return Ok(Progress { choice, piece, ending: Some(ending) });
                }
                EngineEvent::Failed { error, .. } => {
                    tracing::warn!(request = %self.id, %error, "request failed");
                    return Err(ApiError::of_request(error, self.deadline));
                }
            }
        }
    }

    /// What it waited for; known from its first progress on.
    pub fn timing(&self) -> Timing {
        self.timing.unwrap_or_default()
    }

    pub fn is_complete(&self) -> bool {
        self.choices.all_ended()
    }

    /// Everything up to here is being accepted by the HTTP body.
    pub fn deliver(&self) -> Result<(), ApiError> {
        Ok(self.meter.deliver(self.counts.completion)?)
    }

    /// Closes the account of answers that were delivered whole. Returns when that is on the disk: only
    /// then may the response end.
    pub async fn complete(self) -> Result<Counts, ApiError> {
        if let Err(error) = self.deliver() {
            return Err(self.fail(error).await);
        }
        let reason = if self.cut { Billed::Length } else { Billed::Stop };
        self.meter.finish(reason).wait().await?;
        Ok(self.counts)
    }

    /// Closes the account of a request that failed, with what had been delivered, and gives the error
    /// back.
    pub async fn fail(mut self, error: ApiError) -> ApiError {
        self.choices.failed(error.outcome());
        let reason = match error {
            ApiError::Revoked => Billed::Revoked,
            // As if it had gone away then.
            ApiError::Late(Deadline { set_by: SetBy::Client, .. }) => Billed::Cancelled,
            _ => Billed::Error,
        };
        // While the log is not writable the record stays in memory; the client gets its error now.
        let _ = self.meter.finish(reason).wait().await;
        error
    }
}
