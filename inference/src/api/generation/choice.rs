//! The choices of one request. The first choice of each prompt computes the prompt; the others start
//! when it has drawn its first token, and find the prompt's blocks in the prefix cache.

use super::Work;
use super::answer::{Answer, PromptToken};
use crate::api::Api;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::tools::ToolUse;
use crate::engine::{EngineEvent, EngineHandle, EngineRequest, Places};
use crate::guidance::Compiled;
use crate::telemetry::{Course, Observation, Outcome, Served};
use lorikeet_contract::RequestId;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;
use tokio::sync::mpsc;

pub struct Choices {
    choices: Vec<Choice>,
    /// Answers to each prompt.
    per_prompt: usize,
    /// Scored prompts, by their first choices.
    prompts: HashMap<usize, Vec<PromptToken>>,
    /// For those that have not started.
    places: Places,
    observation: Arc<Observation>,
    served: Served,
    /// Whose turn it is to be looked at, so that none is passed over.
    turn: usize,
}

struct Choice {
    id: RequestId,
    answer: Answer,
    /// None when the answer is complete.
    events: Option<mpsc::Receiver<EngineEvent>>,
    /// Until the prompt is computed.
    waiting: Option<EngineRequest>,
    /// While the engine has it.
    course: Option<Course>,
}

impl Choices {
    /// Hands the first choice of each prompt to the engine, and keeps places for the others.
    pub fn start(
        api: &Api,
        caller: &Caller,
        work: Work,
        compiled: Option<&Compiled>,
        id: RequestId,
        deadline: Option<Instant>,
    ) -> Result<Self, ApiError> {
        let Work { model, prompts, parameters, tools } = work;
        let parameter = parameters.grammar.as_ref().map_or("", |wanted| wanted.parameter);
        let shown = tools.as_ref().map_or(Vec::new(), |tools| tools.shown(&api.tokenizer));
        let per_prompt = parameters.n as usize;
        let served =
            Served { tenant: caller.tenant, model: model.name.clone(), adapter: model.version() };
        let mut choices = Vec::with_capacity(prompts.len() * per_prompt);
        for prompt in prompts {
            let prompt_tokens = prompt.len().try_into().unwrap_or(u32::MAX);
            let limit = api.base.context_length;
            let max_tokens = max_tokens(limit, prompt_tokens, parameters.max_tokens)?;
            if parameters.rules.min_tokens > max_tokens {
                let message = format!("`min_tokens` is more than the answer's {max_tokens}.");
                return Err(ApiError::invalid("min_tokens", message));
            }
            for choice in 0..parameters.n {
                // Room for every event there can be, so that the engine never waits.
                let (sender, events) = mpsc::channel(max_tokens as usize + 3);
                let id = if choices.is_empty() { id } else { RequestId::new() };
                let request = EngineRequest {
                    id,
                    tenant: caller.tenant,
                    share: caller.limits().share(),
                    key: Some(caller.key),
                    adapter: model.adapter(),
                    prompt: prompt.clone(),
                    params: parameters.of_choice(choice),
                    rules: parameters.rules.clone(),
                    guide: compiled.map(|compiled| compiled.guide(parameter)),
                    max_tokens,
                    stop_tokens: Vec::new(),
                    ignore_eos: parameters.ignore_eos,
                    logprobs: parameters.logprobs,
                    scores_prompt: parameters.prompt_logprobs && choice == 0,
                    deadline,
                    events: sender,
                };
                choices.push(Choice {
                    id,
                    answer: Answer::new(
                        api.tokenizer.detokenizer().showing(shown.clone()),
                        parameters.stop.clone(),
                        tools.as_ref().map(ToolUse::parser),
                        parameters.rules.min_tokens,
                    ),
                    events: Some(events),
                    waiting: Some(request),
                    course: None,
                });
            }
        }
        let places = api.engine.reserve(caller.tenant, choices.len() as u32)?;
        let observation = caller.observation.clone();
        let prompts = HashMap::new();
        let mut choices =
            Self { choices, per_prompt, prompts, places, observation, served, turn: 0 };
        for leader in (0..choices.choices.len()).step_by(per_prompt) {
            choices.submit(leader, &api.engine)?;
        }
        Ok(choices)
    }

    /// The next event of any choice, with the choice. The channel of one that has not ended is not
    /// empty for ever: a closed one means that the engine is gone.
    pub async fn next_event(
        &mut self,
        engine: &EngineHandle,
    ) -> Result<(usize, EngineEvent), ApiError> {
        let next = poll_fn(|cx| {
            let count = self.choices.len();
            for at in (self.turn..count).chain(0..self.turn) {
                let Some(events) = &mut self.choices[at].events else { continue };
                if let Poll::Ready(event) = events.poll_recv(cx) {
                    self.turn = (at + 1) % count;
                    return Poll::Ready(event.map(|event| (at, event)));
                }
            }
            Poll::Pending
        });
        let (at, event) = next.await.ok_or(ApiError::Stopped)?;
        let computed = matches!(event, EngineEvent::Token(_) | EngineEvent::Finished { .. });
        if computed && self.leads(at) {
            for follower in at + 1..at + self.per_prompt {
                self.submit(follower, engine)?;
            }
        }
        Ok((at, event))
    }

    fn submit(&mut self, choice: usize, engine: &EngineHandle) -> Result<(), ApiError> {
        let Some(request) = self.choices[choice].waiting.take() else { return Ok(()) };
        // A prompt is counted once, however many choices share it.
        let prompt_tokens = if self.leads(choice) { request.prompt.len() as u32 } else { 0 };
        engine.submit_reserved(request, &mut self.places)?;
        let course = Course::begin(&self.observation, self.served.clone(), prompt_tokens);
        self.choices[choice].course = Some(course);
        Ok(())
    }

    /// The one that computes its prompt.
    pub fn leads(&self, choice: usize) -> bool {
        choice.is_multiple_of(self.per_prompt)
    }

    /// Keeps a prompt's scores for all its choices.
    pub fn keep_prompt(&mut self, leader: usize, prompt: Vec<PromptToken>) {
        self.prompts.insert(leader, prompt);
    }

    /// The scores of its prompt, for a choice that did not compute it. Empty if none were asked for.
    pub fn prompt(&self, choice: usize) -> Vec<PromptToken> {
        let leader = choice - choice % self.per_prompt;
        self.prompts.get(&leader).cloned().unwrap_or_default()
    }

    pub fn answer(&mut self, choice: usize) -> &mut Answer {
        &mut self.choices[choice].answer
    }

    /// None when it has ended.
    pub fn course(&mut self, choice: usize) -> Option<&mut Course> {
        self.choices[choice].course.as_mut()
    }

    /// Nothing more comes of it.
    pub fn ended(&mut self, choice: usize, outcome: Outcome) {
        let choice = &mut self.choices[choice];
        choice.events = None;
        if let Some(course) = choice.course.take() {
            course.end(outcome);
        }
    }

    /// Nothing more comes of any.
    pub fn failed(&mut self, outcome: Outcome) {
        for choice in 0..self.choices.len() {
            self.ended(choice, outcome);
        }
    }

    /// Ends it, whatever the engine still does for it.
    pub fn close(&mut self, choice: usize, engine: &EngineHandle) {
        self.ended(choice, "stop");
        engine.cancel(self.choices[choice].id);
    }

    pub fn all_ended(&self) -> bool {
        self.choices.iter().all(|choice| choice.events.is_none())
    }
}

/// What the engine is to draw. An answer of no tokens takes one all the same: the step that reads the last
/// token of the prompt draws.
fn max_tokens(limit: u32, prompt: u32, wanted: Option<u32>) -> Result<u32, ApiError> {
    let room = limit.saturating_sub(prompt);
    let completion = wanted.unwrap_or(room).max(1);
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
        assert_eq!(max_tokens(100, 40, Some(0)).ok(), Some(1));
        let message = |prompt, wanted| max_tokens(100, prompt, wanted).map_err(|e| e.to_string());
        let error = message(40, Some(61)).expect_err("one too many");
        assert!(error.contains("100 tokens") && error.contains("101 tokens (40 in the prompt, 61"));
        assert!(message(100, None).is_err() && message(u32::MAX, Some(1)).is_err());
    }
}
