//! What an endpoint makes of an answer: one body, or the events of a stream.

use super::error::ApiError;
use super::generation::{Counts, Ending, Generation, Piece, Progress, PromptToken, TokenLogprob};
use super::stream;
use super::tools::Part;
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

/// An endpoint's form of an answer. In a stream the calls come in this order, and the pieces and ends
/// of the choices between each other.
pub trait Shape: Send + 'static {
    fn whole(self, choices: Vec<Choice>, counts: Counts) -> Value;

    fn opening(&mut self, out: &mut Events);
    fn piece(&mut self, choice: usize, piece: Piece, out: &mut Events);
    fn end(&mut self, choice: usize, ending: Ending, out: &mut Events);
    /// All choices have ended, and the account is closed.
    fn close(&mut self, counts: Counts, out: &mut Events);
    /// The status is long sent: the error travels as the last event.
    fn fail(&mut self, error: &ApiError, out: &mut Events);
}

/// A complete choice.
#[derive(Debug)]
pub struct Choice {
    /// Of a prompt whose log probabilities were asked for.
    pub prompt: Vec<PromptToken>,
    pub text: String,
    pub calls: Vec<Call>,
    pub logprobs: Vec<TokenLogprob>,
    pub ending: Ending,
}

#[derive(Debug)]
pub struct Call {
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

impl Choice {
    fn new() -> Self {
        Self {
            prompt: vec![],
            text: String::new(),
            calls: vec![],
            logprobs: vec![],
            ending: Ending::Stop,
        }
    }

    fn grow(&mut self, piece: Piece) {
        self.prompt.extend(piece.prompt);
        self.logprobs.extend(piece.logprobs);
        for part in piece.parts {
            match part {
                Part::Text(text) => self.text += &text,
                Part::Call(name) => self.calls.push(Call { name, arguments: String::new() }),
                Part::Arguments(more) => {
                    if let Some(call) = self.calls.last_mut() {
                        call.arguments += &more;
                    }
                }
                Part::CallEnd => {}
                Part::NoCall { text, .. } => {
                    self.calls.pop();
                    self.text += &text;
                }
            }
        }
    }
}

/// Server-sent events as they go over the wire.
#[derive(Debug, Default)]
pub struct Events(pub(super) Vec<u8>);

impl Events {
    pub fn push(&mut self, data: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        self.json(data);
    }

    /// An event with a name beside its data.
    pub fn push_named(&mut self, name: &str, data: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\ndata: ");
        self.json(data);
    }

    /// How OpenAI's older streams end.
    pub fn push_done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn json(&mut self, data: &impl Serialize) {
        serde_json::to_writer(&mut self.0, data)
            .expect("maps have string keys, a vector takes all");
        self.0.extend_from_slice(b"\n\n");
    }
}

/// Generates and answers. Until the first token an error still has a status of its own.
pub async fn respond<S: Shape>(
    mut generation: Generation,
    shape: S,
    streaming: bool,
) -> Result<Response, ApiError> {
    let first = match generation.next().await {
        Ok(first) => first,
        Err(error) => return Err(generation.fail(error).await),
    };
    let timing = generation.timing();
    if streaming {
        return Ok(timing.told_in(stream::respond(generation, first, shape)));
    }
    let (choices, counts) = collect(generation, first).await?;
    Ok(timing.told_in(Json(shape.whole(choices, counts)).into_response()))
}

/// The whole answer. Nothing of it has been delivered before.
async fn collect(
    mut generation: Generation,
    first: Progress,
) -> Result<(Vec<Choice>, Counts), ApiError> {
    let mut choices: Vec<Choice> = Vec::new();
    let mut progress = first;
    loop {
        let Progress { choice, piece, ending } = progress;
        if choices.len() <= choice {
            choices.resize_with(choice + 1, Choice::new);
        }
        choices[choice].grow(piece);
        if let Some(ending) = ending {
            choices[choice].ending = ending;
        }
        if generation.is_complete() {
            return Ok((choices, generation.complete().await?));
        }
        progress = match generation.next().await {
            Ok(progress) => progress,
            Err(error) => return Err(generation.fail(error).await),
        };
    }
}
