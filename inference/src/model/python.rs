//! The little of Python that chat templates use beyond Jinja: methods of strings and dictionaries,
//! and the spacing of `json.dumps`.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
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
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.starts_with(prefix).into())
        }
        "endswith" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.ends_with(suffix).into())
        }
        "split" => {
            let (separator,): (Option<&str>,) = from_args(args)?;
            Ok(match separator {
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
                Some(separator) => text.split(separator).collect(),
                None => text.split_whitespace().collect(),
            })
        }
        "replace" => {
            let (from, to): (&str, &str) = from_args(args)?;
            Ok(text.replace(from, to).into())
        }
        "upper" => from_args(args).map(|()| text.to_uppercase().into()),
        "lower" => from_args(args).map(|()| text.to_lowercase().into()),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
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

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub(super) fn json(value: &Value, indent: Option<usize>) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced))?,
    }
    Ok(String::from_utf8(out).expect("serde_json writes UTF-8"))
}

/// One line, with a space behind each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}
