//! One request from its first byte to its last, with a stopwatch.

use super::api::{Api, BodyOptions, ErrorBody, Event, Prompt, Usage};
use super::schedule::Planned;
use crate::sse::Events;
use serde::Deserialize;
use std::fmt;
use std::time::{Duration, Instant};
use tokio::time::timeout;

const CONNECTS_WITHIN: Duration = Duration::from_secs(10);
/// Less than servers wait before they close a connection that nothing comes through: a request on a
/// closed one fails.
const IDLE: Duration = Duration::from_secs(2);

/// A client that keeps connections for the next request. llama-server closes its own after so many
/// requests without saying so: it gets a new one for each.
pub fn client(api: Api) -> reqwest::Result<reqwest::Client> {
    let idle = if api == Api::LlamaServer { 0 } else { usize::MAX };
    reqwest::Client::builder()
        .connect_timeout(CONNECTS_WITHIN)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(idle)
        .build()
}

/// Where requests go, and as whom.
pub struct Target {
    pub http: reqwest::Client,
    pub api: Api,
    /// Without a slash at its end.
    pub base_url: String,
    pub tenants: Vec<Tenant>,
    pub options: BodyOptions,
    /// For a whole request.
    pub timeout: Duration,
}

pub struct Tenant {
    pub key: Option<String>,
    /// Not empty.
    pub models: Vec<String>,
}

/// What became of a request.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub tenant: usize,
    /// When it was to be sent.
    pub due: Instant,
    pub sent: Instant,
    /// When each event with text came.
    pub texts: Vec<Instant>,
    pub ended: Instant,
    /// By the server's own count, else by the events.
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub failure: Option<Failure>,
}

/// Why a request did not get its answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// As many were under way as may be.
    NotSent,
    Connection,
    /// The server refused, with this status and code.
    Status(u16, String),
    /// The stream carried an error with this code.
    InStream(String),
    /// The connection ended before the answer did.
    BrokenOff,
    NotUnderstood,
    Timeout,
    /// Fewer tokens than were asked for, although `ignore_eos` was set.
    TooShort,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotSent => f.write_str("not sent: too many in flight"),
            Failure::Connection => f.write_str("no connection"),
            Failure::Status(status, code) => write!(f, "status {status} {code}"),
            Failure::InStream(code) => write!(f, "error in the stream: {code}"),
            Failure::BrokenOff => f.write_str("broken off"),
            Failure::NotUnderstood => f.write_str("not understood"),
            Failure::Timeout => f.write_str("timeout"),
            Failure::TooShort => f.write_str("fewer tokens than asked for"),
        }
    }
}

impl Outcome {
    pub fn not_sent(planned: &Planned, due: Instant) -> Self {
        Self { failure: Some(Failure::NotSent), ..Self::begun(planned, due) }
    }

    fn begun(planned: &Planned, due: Instant) -> Self {
        let now = Instant::now();
        Self {
            tenant: planned.tenant,
            due,
            sent: now,
            texts: Vec::with_capacity(planned.output_tokens as usize),
            ended: now,
            prompt_tokens: 0,
            output_tokens: 0,
            failure: None,
        }
    }
}

impl Target {
    pub async fn request(&self, planned: &Planned, due: Instant) -> Outcome {
        let mut outcome = Outcome::begun(planned, due);
        let answer = timeout(self.timeout, self.answer(planned, &mut outcome));
        let usage = match answer.await {
            Ok(Ok(usage)) => usage,
            Ok(Err(failure)) => {
                outcome.failure = Some(failure);
                None
            }
            Err(_) => {
                outcome.failure = Some(Failure::Timeout);
                None
            }
        };
        outcome.ended = Instant::now();
        outcome.prompt_tokens = usage.map_or(planned.prompt_tokens, |usage| usage.prompt_tokens);
        let events = outcome.texts.len() as u32;
        outcome.output_tokens = usage.map_or(events, |usage| usage.completion_tokens);
        let is_short = self.options.ignore_eos && outcome.output_tokens < planned.output_tokens;
        if outcome.failure.is_none() && is_short {
            outcome.failure = Some(Failure::TooShort);
        }
        outcome
    }

    async fn answer(
        &self,
        planned: &Planned,
        outcome: &mut Outcome,
    ) -> Result<Option<Usage>, Failure> {
        let tenant = &self.tenants[planned.tenant];
        let prompt = Prompt { seed: planned.prompt_seed, tokens: planned.prompt_tokens };
        let model = &tenant.models[planned.model];
        let body = self.api.body(model, prompt, planned.output_tokens, self.options);
        let body = body.map_err(|_| Failure::NotUnderstood)?;
        let mut request = self
            .http
            .post(format!("{}{}", self.base_url, self.api.path()))
            .header("content-type", "application/json")
            .body(body);
        if let Some(key) = &tenant.key {
            request = request.bearer_auth(key);
        }
        outcome.sent = Instant::now();
        let mut response = request.send().await.map_err(|_| Failure::Connection)?;
        let status = response.status();
        if !status.is_success() {
            let body = response.bytes().await.unwrap_or_default();
            return Err(Failure::Status(status.as_u16(), error_name(&body)));
        }
        let mut events = Events::default();
        let mut end = End::default();
        while let Some(bytes) = response.chunk().await.map_err(|_| Failure::BrokenOff)? {
            let now = Instant::now();
            events.push(&bytes);
            while let Some(data) = events.pop() {
                end.take(&data, now, &mut outcome.texts)?;
            }
        }
        if end.is_complete { Ok(end.usage) } else { Err(Failure::BrokenOff) }
    }
}

/// What the stream has said of its end so far.
#[derive(Default)]
struct End {
    is_complete: bool,
    usage: Option<Usage>,
}

impl End {
    fn take(&mut self, data: &str, now: Instant, texts: &mut Vec<Instant>) -> Result<(), Failure> {
        if data == "[DONE]" {
            self.is_complete = true;
            return Ok(());
        }
        let event = Event::read(data).map_err(|_| Failure::NotUnderstood)?;
        if let Some(code) = event.error {
            return Err(Failure::InStream(code));
        }
        if event.has_text {
            texts.push(now);
        }
        self.is_complete |= event.is_last;
        self.usage = event.usage.or(self.usage);
        Ok(())
    }
}

/// The code of a refusal; what else it says may quote the request.
fn error_name(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: ErrorBody,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.error.name(),
        Err(_) => String::new(),
    }
}
