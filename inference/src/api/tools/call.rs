//! One call as the model writes it: a JSON object with a name and arguments, or a name with an object of
//! arguments behind it.

use lorikeet_compute::model::ToolFormat;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::ops::Range;

/// What a character made of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    More,
    Whole,
    /// The call ends with it, and is no JSON.
    Malformed,
    /// It cannot stand there: this is no call, and the character is not part of it.
    Misplaced,
}

/// Reads a call character by character, only as closely as is needed to find its parts; whether it is JSON
/// shows at its end.
#[derive(Debug, Default)]
pub struct CallReader {
    text: String,
    place: Place,
    scan: Scan,
    /// Where the key, value or mark begins that is being read.
    begin: usize,
    key: String,
    name: Option<String>,
    arguments: Option<Range<usize>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Object,
    Key,
    InKey,
    Colon,
    Value,
    InValue,
    Behind,
    /// Of a named call, in their order.
    InName,
    BehindName,
    InMark,
    InId,
    BehindMarks,
    InArguments,
}

/// Finds the end of a value.
#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// True at the end of a string, an array or an object. Other values have none of their own.
    fn ends(&mut self, c: char) -> bool {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return !self.in_string && self.depth == 0;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }

    fn is_inside(&self) -> bool {
        self.in_string || self.depth > 0
    }
}

impl CallReader {
    /// Of a call that begins with a name: `f[ARGS]{}` or `f[CALL_ID]x[ARGS]{}`, the marks there or not.
    pub fn named() -> Self {
        Self { place: Place::InName, ..Self::default() }
    }

    /// `is_function` says whether there is a function of a name: an object that names another one is
    /// no call.
    pub fn push(&mut self, c: char, is_function: impl Fn(&str) -> bool) -> Step {
        let at = self.text.len();
        self.text.push(c);
        match self.step(c, at, is_function) {
            Step::Whole if serde_json::from_str::<IgnoredAny>(self.json()).is_err() => {
                Step::Malformed
            }
            Step::Misplaced => {
                self.text.truncate(at);
                Step::Misplaced
            }
            step => step,
        }
    }

    fn step(&mut self, c: char, at: usize, is_function: impl Fn(&str) -> bool) -> Step {
        match (self.place, c) {
            (Place::InKey, _) => {
                if self.scan.ends(c) {
                    self.key = string(&self.text[self.begin..]);
                    if !is_known(&self.key) {
                        return Step::Misplaced;
                    }
                    self.place = Place::Colon;
                }
            }
            (Place::InValue, _) if self.scan.is_inside() => {
                if self.scan.ends(c) {
                    return self.end_value(is_function);
                }
            }
            (Place::InValue, ',' | '}') => return self.behind(c),
            (Place::InValue, _) => {}
            (Place::Object | Place::Key | Place::Colon | Place::Value | Place::Behind, c)
                if is_blank(c) => {}
            (Place::Object, '{') => self.place = Place::Key,
            (Place::Key, '"') => self.begin(at, Place::InKey, c),
            (Place::Colon, ':') => self.place = Place::Value,
            (Place::Value, '{') => self.begin(at, Place::InValue, c),
            (Place::Value, _) if is_arguments(&self.key) => return Step::Misplaced,
            (Place::Value, _) => self.begin(at, Place::InValue, c),
            (Place::Behind, _) => return self.behind(c),
            (Place::Object | Place::Key | Place::Colon, _) => return Step::Misplaced,
            _ => return self.step_named(c, at, is_function),
        }
        Step::More
    }

    /// What ends as a whole call.
    fn json(&self) -> &str {
        match self.place {
            Place::InArguments => self.arguments().unwrap_or_default(),
            _ => &self.text,
        }
    }

    fn step_named(&mut self, c: char, at: usize, is_function: impl Fn(&str) -> bool) -> Step {
        match (self.place, c) {
            (Place::InName, _) if is_of_name(c) => return Step::More,
            (Place::InName, _) => {
                let name = &self.text[..at];
                if !is_function(name) {
                    return Step::Misplaced;
                }
                self.name = Some(name.to_owned());
                self.place = Place::BehindName;
                return self.step_named(c, at, is_function);
            }
            (Place::InMark, _) => {
                let mark = &self.text[self.begin..];
                let begins = |known: &&str| known.starts_with(mark);
                self.place = match mark {
                    ToolFormat::ARGS => Place::BehindMarks,
                    ToolFormat::CALL_ID => Place::InId,
                    _ if [ToolFormat::ARGS, ToolFormat::CALL_ID].iter().any(begins) => {
                        Place::InMark
                    }
                    _ => return Step::Misplaced,
                };
            }
            (Place::InId, _) if c.is_ascii_alphanumeric() => {}
            (Place::BehindName | Place::InId, '[') => {
                (self.place, self.begin) = (Place::InMark, at)
            }
            (Place::InArguments, _) => {
                if self.scan.ends(c) {
                    return Step::Whole;
                }
            }
            (_, '{') => {
                self.arguments = Some(at..usize::MAX);
                self.scan.ends(c);
                self.place = Place::InArguments;
            }
            (_, c) if is_blank(c) => {}
            _ => return Step::Misplaced,
        }
        Step::More
    }

    fn begin(&mut self, at: usize, place: Place, c: char) {
        self.begin = at;
        self.scan = Scan::default();
        self.scan.ends(c);
        self.place = place;
        if place == Place::InValue && self.arguments.is_none() && is_arguments(&self.key) {
            self.arguments = Some(at..usize::MAX);
        }
    }

    /// Of a string, an array or an object.
    fn end_value(&mut self, is_function: impl Fn(&str) -> bool) -> Step {
        self.place = Place::Behind;
        if let Some(arguments) = &mut self.arguments {
            arguments.end = arguments.end.min(self.text.len());
        }
        if self.key == "name" && self.name.is_none() {
            let name = string(&self.text[self.begin..]);
            if !is_function(&name) {
                return Step::Misplaced;
            }
            self.name = Some(name);
        }
        Step::More
    }

    fn behind(&mut self, c: char) -> Step {
        match c {
            ',' => self.place = Place::Key,
            '}' if self.name.is_some() => return Step::Whole,
            _ => return Step::Misplaced,
        }
        Step::More
    }

    /// The function, once it is known.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The arguments so far, once they have begun.
    pub fn arguments(&self) -> Option<&str> {
        let Range { start, end } = self.arguments.clone()?;
        Some(&self.text[start..end.min(self.text.len())])
    }

    /// Bytes behind so many bytes of the arguments.
    pub fn behind_arguments(&self, passed: usize) -> usize {
        let start = self.arguments.as_ref().map_or(0, |arguments| arguments.start);
        self.text.len() - start - passed
    }
}

/// As the names of functions are checked when they are offered.
pub fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// JSON's own.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// Under either of the formats' names: models mix them up.
fn is_arguments(key: &str) -> bool {
    key == "arguments" || key == "parameters"
}

/// Any other object is not held back to its end.
fn is_known(key: &str) -> bool {
    is_arguments(key) || matches!(key, "name" | "type" | "id")
}

/// What a JSON string means; empty if it is none.
fn string(json: &str) -> String {
    match serde_json::from_str(json) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}
