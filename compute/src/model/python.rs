//! The little of Python that chat templates use beyond Jinja: methods of strings and dictionaries,
//! and the spacing of `json.dumps`.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::io;

/// `value.method(*args)`, for methods that Jinja values of this engine do not have themselves.
pub(super) fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => call_string_method(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => call_map_method(state, value, method, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn call_string_method(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<&str>,) = from_args(args)?;
            let strip = |c: char| set.map_or(c.is_whitespace(), |set| set.contains(c));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(strip) };
            Ok(if method == "lstrip" { text } else { text.trim_end_matches(strip) }.into())
        }
        "startswith" => {
            let (prefixes,): (Value,) = from_args(args)?;
            any_of(&prefixes, |prefix| text.starts_with(prefix))
        }
        "endswith" => {
            let (suffixes,): (Value,) = from_args(args)?;
            any_of(&suffixes, |suffix| text.ends_with(suffix))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "split" | "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            split(text, separator, most, method == "rsplit")
        }
        "splitlines" => from_args(args).map(|()| text.lines().collect()),
        "join" => {
            let (parts,): (Value,) = from_args(args)?;
            let parts: Vec<String> = parts.try_iter()?.map(|part| part.to_string()).collect();
            Ok(parts.join(text).into())
        }
        "replace" => {
            let (from, to, most): (&str, &str, Option<usize>) = from_args(args)?;
            Ok(most.map_or_else(|| text.replace(from, to), |n| text.replacen(from, to, n)).into())
        }
        "find" => {
            let (part,): (&str,) = from_args(args)?;
            let at = text.find(part).map(|at| text[..at].chars().count() as i64);
            Ok(at.unwrap_or(-1).into())
        }
        "count" => {
            let (part,): (&str,) = from_args(args)?;
            Ok(text.matches(part).count().into())
        }
        "upper" => from_args(args).map(|()| text.to_uppercase().into()),
        "lower" => from_args(args).map(|()| text.to_lowercase().into()),
        "title" => from_args(args).map(|()| title(text).into()),
        "capitalize" => from_args(args).map(|()| capitalized(text).into()),
        "isdigit" => {
            let () = from_args(args)?;
            Ok((!text.is_empty() && text.chars().all(char::is_numeric)).into())
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// A string, or a tuple of strings of which one is enough.
fn any_of(texts: &Value, is: impl Fn(&str) -> bool) -> Result<Value, Error> {
    if let Some(text) = texts.as_str() {
        return Ok(is(text).into());
    }
    let mut found = false;
    for text in texts.try_iter()? {
        found |= text.as_str().is_some_and(&is);
    }
    Ok(found.into())
}

/// At most `most` cuts, counted from the end if `from_end`; all of them where it is negative.
fn split(
    text: &str,
    separator: Option<&str>,
    most: Option<i64>,
    from_end: bool,
) -> Result<Value, Error> {
    let parts = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |n| n + 1);
    let Some(separator) = separator else {
        // Runs of whitespace; what is left after the last cut keeps its own.
        let mut found = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() && found.len() + 1 < parts {
            let cut = if from_end {
                rest.rsplit_once(char::is_whitespace).map(|(rest, word)| (word, rest.trim_end()))
            } else {
                rest.split_once(char::is_whitespace).map(|(word, rest)| (word, rest.trim_start()))
            };
            let Some((word, others)) = cut else { break };
            found.push(word);
            rest = others;
        }
        found.extend((!rest.is_empty()).then_some(rest));
        return Ok(in_order(found, from_end));
    };
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let found: Vec<&str> = match from_end {
        true => text.rsplitn(parts, separator).collect(),
        false => text.splitn(parts, separator).collect(),
    };
    Ok(in_order(found, from_end))
}

fn in_order(mut found: Vec<&str>, from_end: bool) -> Value {
    if from_end {
        found.reverse();
    }
    found.into_iter().collect()
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.flat_map(char::to_lowercase)).collect()
}

/// The first letter of each run of letters in upper case, the others in lower case.
fn title(text: &str) -> String {
    text.split_inclusive(|c: char| !c.is_alphabetic()).map(capitalized).collect()
}

fn call_map_method(
    state: &mut State,
    map: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match method {
        "items" => {
            let () = from_args(args)?;
            state.apply_filter("items", std::slice::from_ref(map))
        }
        "keys" => {
            let () = from_args(args)?;
            Ok(map.try_iter()?.collect())
        }
        "values" => {
            let () = from_args(args)?;
            map.try_iter()?.map(|key| map.get_item(&key)).collect()
        }
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// How `json.dumps` writes; its own defaults but for `ensure_ascii`, which templates have off.
#[derive(Default)]
pub(super) struct JsonStyle {
    pub indent: Option<usize>,
    /// Between items, and between a key and its value.
    pub separators: Option<(String, String)>,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
}

/// Python's `json.dumps`.
pub(super) fn json(value: &impl Serialize, style: JsonStyle) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    // Between items of an indented list stands a line end, so that the space is left out.
    let item = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = style.separators.unwrap_or_else(|| (item.into(), ": ".into()));
    let formatter = Python {
        item,
        key,
        indent: style.indent,
        depth: 0,
        filled: false,
        ascii: style.ensure_ascii,
    };
    let mut serializer = Serializer::with_formatter(&mut out, formatter);
    if style.sort_keys {
        // Its maps are sorted.
        sorted(serde_json::to_value(value)?).serialize(&mut serializer)?;
    } else {
        value.serialize(&mut serializer)?;
    }
    Ok(String::from_utf8(out).expect("serde_json writes UTF-8"))
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let map: std::collections::BTreeMap<_, _> =
                map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            serde_json::Value::Object(map.into_iter().collect())
        }
        serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

struct Python {
    item: String,
    key: String,
    indent: Option<usize>,
    depth: usize,
    /// The list or dictionary that ends has something in it.
    filled: bool,
    ascii: bool,
}

impl Python {
    fn open<W: ?Sized + io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        w.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(w)?;
        }
        self.filled = true;
        w.write_all(bracket)
    }

    fn begin<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if !first {
            w.write_all(self.item.as_bytes())?;
        }
        self.line(w)
    }

    fn line<W: ?Sized + io::Write>(&self, w: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(w, "\n{:width$}", "", width = indent * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.open(w, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.close(w, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin(w, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.open(w, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.close(w, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin(w, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ascii {
            return w.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            match c {
                ' '..='~' => write!(w, "{c}")?,
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(w, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
