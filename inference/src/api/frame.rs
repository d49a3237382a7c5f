//! What bodies and chunks of OpenAI's older endpoints have in common.

use super::error::ApiError;
use super::generation::{Counts, Ending};
use super::models::Model;
use super::parameters::Parameters;
use super::shape::Events;
use super::usage::Usage;
use lorikeet_contract::RequestId;
use serde::Serialize;
use serde_json::{Value, json};

pub struct Frame {
    request: RequestId,
    id: String,
    /// What a chunk is called.
    chunk: &'static str,
    created: i64,
    model: String,
    fingerprint: String,
    include_usage: bool,
}

#[derive(Serialize)]
struct Body<'a, C> {
    id: &'a str,
    object: &'a str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [C],
    /// Null in every chunk but the last where the last one carries the counts; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl Frame {
    pub fn new(
        prefix: &str,
        chunk: &'static str,
        request: RequestId,
        model: &Model,
        parameters: &Parameters,
    ) -> Self {
        Self {
            request,
            id: format!("{prefix}-{}", request.as_uuid().simple()),
            chunk,
            created: crate::durable::unix_ms() / 1000,
            model: model.name.clone(),
            fingerprint: model.fingerprint.clone(),
            include_usage: parameters.include_usage,
        }
    }

    pub fn whole<C: Serialize>(&self, object: &str, choices: &[C], counts: Counts) -> Value {
        json!(self.body(object, choices, Some(Some(counts.into()))))
    }

    pub fn chunk(&self, choice: impl Serialize, out: &mut Events) {
        let usage = self.include_usage.then_some(None);
        out.push(&self.body(self.chunk, &[choice], usage));
    }

    pub fn close(&self, counts: Counts, out: &mut Events) {
        if self.include_usage {
            let nothing: &[Value] = &[];
            out.push(&self.body(self.chunk, nothing, Some(Some(counts.into()))));
        }
        out.push_done();
    }

    pub fn fail(&self, error: &ApiError, out: &mut Events) {
        out.push(&error.body(self.request));
        out.push_done();
    }

    fn body<'a, C>(
        &'a self,
        object: &'a str,
        choices: &'a [C],
        usage: Option<Option<Usage>>,
    ) -> Body<'a, C> {
        Body {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
        }
    }
}

pub fn finish_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Stop => "stop",
        Ending::Length => "length",
    }
}
