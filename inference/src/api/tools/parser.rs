//! From the text of an answer to its calls, wherever the text is cut into pieces.
//!
//! ```text
//! text ── opening ──> opened ── { or a name ──> call ── } ──> behind ── closing ──> text
//!                        └──── anything else, here or there: text, to the letter ────┘
//! ```
//! What cannot be part of a call goes through at once, and what begins like one waits until it is clear.

use super::call::{CallReader, Step, is_of_name};
use lorikeet_compute::model::ToolFormat;
use std::mem;
use std::sync::Arc;

/// A part of an answer, in the order of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of its arguments. They are a JSON object when the call is whole.
    Arguments(String),
    /// The call is whole.
    CallEnd,
    /// What began as a call is none. `text` is all of it as the model wrote it; its last `unseen` bytes
    /// were in no part before.
    NoCall {
        text: String,
        unseen: usize,
    },
}

/// Finds calls in one answer.
#[derive(Debug)]
pub struct CallParser {
    format: ToolFormat,
    /// Names of the functions that there are.
    functions: Arc<[String]>,
    state: State,
    /// Text that may belong to a call: from the blanks before its opening on.
    held: String,
    /// There has been text since the beginning, or since the last call.
    after_text: bool,
    any_call: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// An object is expected, in a list or by itself.
    Opened { list: bool },
    Call {
        reader: CallReader,
        list: bool,
        /// Bytes of the arguments that went out; None: the call itself has not.
        passed: Option<usize>,
    },
    /// After an object.
    Behind { list: bool },
    /// After all objects: so many bytes of what closes them have come.
    Closing { matched: usize },
}

impl CallParser {
    pub fn new(format: ToolFormat, functions: Arc<[String]>) -> Self {
        Self {
            format,
            functions,
            state: State::Text,
            held: String::new(),
            after_text: false,
            any_call: false,
        }
    }

    pub fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        for c in text.chars() {
            self.take(c, parts);
        }
        match self.state {
            State::Text => self.pass_text(self.open_from(), parts),
            State::Call { .. } => self.pass_arguments(parts),
            _ => {}
        }
    }

    /// The end of the answer: what waited is no call after all.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        self.give_up(parts);
        // Blanks around calls are no text.
        if self.after_text || !self.any_call || !trimmed(&self.held).is_empty() {
            self.pass_text(self.held.len(), parts);
        }
    }

    fn take(&mut self, c: char, parts: &mut Vec<Part>) {
        match &mut self.state {
            State::Text => self.take_text(c, parts),
            State::Opened { list } => match c {
                '{' => self.begin_call(CallReader::default(), c, parts),
                _ if names_calls(self.format) && !*list && is_of_name(c) => {
                    self.begin_call(CallReader::named(), c, parts);
                }
                '[' if !*list => {
                    *list = true;
                    self.held.push(c);
                }
                _ if is_blank(c) => self.held.push(c),
                _ => self.back_to_text(c, parts),
            },
            State::Call { .. } => self.take_call(c, parts),
            State::Behind { list } => match (c, *list) {
                (',', true) | (';', false) => {
                    self.state = State::Opened { list: *list };
                    self.held.push(c);
                }
                (']', true) => self.close(),
                ('{', false) => self.begin_call(CallReader::default(), c, parts),
                _ if is_blank(c) => self.held.push(c),
                _ => self.back_to_text(c, parts),
            },
            State::Closing { matched } => {
                let closing = self.format.closing().unwrap_or_default();
                if *matched == 0 && is_blank(c) {
                    self.held.push(c);
                } else if closing[*matched..].starts_with(c) {
                    *matched += c.len_utf8();
                    self.held.push(c);
                    if *matched == closing.len() {
                        self.held.clear();
                        self.state = State::Text;
                    }
                } else {
                    self.back_to_text(c, parts);
                }
            }
        }
    }

    fn take_text(&mut self, c: char, parts: &mut Vec<Part>) {
        if c == '{' && self.format == ToolFormat::Llama3 && self.begins_line() {
            self.pass_text(trimmed(&self.held).len(), parts);
            self.begin_call(CallReader::default(), c, parts);
            return;
        }
        self.held.push(c);
        if let Some(before) = self.held.strip_suffix(self.format.opening()) {
            self.pass_text(trimmed(before).len(), parts);
            self.state = State::Opened { list: false };
        }
    }

    /// Whether nothing but blanks stands before on the line.
    fn begins_line(&self) -> bool {
        let text = trimmed(&self.held);
        self.held[text.len()..].contains('\n') || text.is_empty() && !self.after_text
    }

    fn begin_call(&mut self, reader: CallReader, c: char, parts: &mut Vec<Part>) {
        let list = matches!(self.state, State::Opened { list: true });
        self.state = State::Call { reader, list, passed: None };
        self.take_call(c, parts);
    }

    fn take_call(&mut self, c: char, parts: &mut Vec<Part>) {
        let State::Call { reader, list, .. } = &mut self.state else { return };
        let (functions, list) = (&self.functions, *list);
        let step = reader.push(c, |name| functions.iter().any(|function| function == name));
        if step != Step::Misplaced {
            self.held.push(c);
        }
        match step {
            Step::More => {}
            Step::Whole => {
                self.end_call(parts);
                self.state = State::Behind { list };
                if !list && self.format.closing().is_some() {
                    self.close();
                }
            }
            Step::Malformed => self.give_up(parts),
            Step::Misplaced => self.back_to_text(c, parts),
        }
    }

    fn end_call(&mut self, parts: &mut Vec<Part>) {
        self.pass_arguments(parts);
        let State::Call { reader, passed, .. } = &self.state else { return };
        if passed.is_none() {
            let name = reader.name().unwrap_or_default().to_owned();
            parts.extend([Part::Call(name), Part::Arguments("{}".into())]);
        }
        parts.push(Part::CallEnd);
        self.held.clear();
        (self.after_text, self.any_call) = (false, true);
    }

    /// The objects are over.
    fn close(&mut self) {
        self.held.clear();
        self.state = match self.format.closing() {
            Some(_) => State::Closing { matched: 0 },
            None => State::Text,
        };
    }

    fn back_to_text(&mut self, c: char, parts: &mut Vec<Part>) {
        self.give_up(parts);
        self.take_text(c, parts);
    }

    /// What is held is text. Of a call that has gone out, its part says so.
    fn give_up(&mut self, parts: &mut Vec<Part>) {
        self.pass_arguments(parts);
        if let State::Call { reader, passed: Some(passed), .. } = mem::take(&mut self.state) {
            let unseen = reader.behind_arguments(passed);
            parts.push(Part::NoCall { text: mem::take(&mut self.held), unseen });
            self.after_text = true;
        }
    }

    fn pass_arguments(&mut self, parts: &mut Vec<Part>) {
        let State::Call { reader, passed, .. } = &mut self.state else { return };
        let (Some(name), Some(arguments)) = (reader.name(), reader.arguments()) else { return };
        if passed.is_none() {
            parts.push(Part::Call(name.to_owned()));
        }
        let more = &arguments[passed.unwrap_or(0)..];
        if !more.is_empty() {
            parts.push(Part::Arguments(more.to_owned()));
        }
        *passed = Some(arguments.len());
    }

    fn pass_text(&mut self, end: usize, parts: &mut Vec<Part>) {
        if end == 0 {
            return;
        }
        let rest = self.held.split_off(end);
        parts.push(Part::Text(mem::replace(&mut self.held, rest)));
        self.after_text = true;
    }

    /// Where the part of the text begins that may yet belong to a call: the beginning of an opening, and
    /// the blanks before it.
    fn open_from(&self) -> usize {
        let opening = self.format.opening();
        let boundaries = self.held.char_indices().map(|(at, _)| at);
        let open = boundaries.into_iter().find(|at| opening.starts_with(&self.held[*at..]));
        trimmed(&self.held[..open.unwrap_or(self.held.len())]).len()
    }
}

/// Whether a function's name may stand before the arguments, and not in an object with them.
fn names_calls(format: ToolFormat) -> bool {
    matches!(format, ToolFormat::Mistral | ToolFormat::MistralV11)
}

/// Without the blanks behind it.
fn trimmed(text: &str) -> &str {
    text.trim_end_matches(is_blank)
}

fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace()
}
