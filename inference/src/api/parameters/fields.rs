//! The fields of a request's body, taken one by one, so that an error names the field and nothing that
//! would change the answer passes unread.

use super::range::{Integer, Real};
use crate::api::error::ApiError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What of a JSON object has not been read yet. A null is an absent field.
#[derive(Debug)]
pub struct Fields {
    unread: Map<String, Value>,
    ignored: Vec<&'static str>,
}

impl Fields {
    pub fn new(unread: Map<String, Value>) -> Self {
        Self { unread, ignored: Vec::new() }
    }

    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.unread.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|e| ApiError::invalid(name, format!("Invalid `{name}`: {e}."))),
        }
    }

    pub fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?
            .ok_or_else(|| ApiError::invalid(name, format!("The field `{name}` is missing.")))
    }

    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.take(name)?.unwrap_or(false))
    }

    pub fn real(&mut self, range: &Real) -> Result<f32, ApiError> {
        match self.take(range.name)? {
            None => Ok(range.default),
            Some(value) if range.allows(value) => Ok(value),
            Some(value) => Err(out_of_range(range.name, value, &range.bounds())),
        }
    }

    pub fn integer(&mut self, range: &Integer) -> Result<Option<u32>, ApiError> {
        match self.take::<i64>(range.name)? {
            None => Ok(None),
            Some(value) => match u32::try_from(value) {
                Ok(value) if range.allows(value) => Ok(Some(value)),
                _ => Err(out_of_range(range.name, value, &range.bounds())),
            },
        }
    }

    /// Passes over a field when its value asks for nothing that is not so anyway; any other value is
    /// left to be refused.
    pub fn pass(&mut self, name: &str, changes_nothing: impl FnOnce(&Value) -> bool) {
        if self.unread.get(name).is_some_and(changes_nothing) {
            self.unread.remove(name);
        }
    }

    /// Passes over a field that asks for something which does not change the answer, and remembers
    /// to say so.
    pub fn ignore(&mut self, name: &'static str) {
        if self.unread.remove(name).is_some_and(|value| !value.is_null()) {
            self.ignored.push(name);
        }
    }

    /// Refuses whatever has not been read, and gives the names of what was ignored.
    pub fn finish(self) -> Result<Vec<&'static str>, ApiError> {
        let Some((name, _)) = self.unread.iter().find(|(_, value)| !value.is_null()) else {
            return Ok(self.ignored);
        };
        let message =
            format!("The field `{name}` is not supported, or not with this value: leave it out.");
        Err(ApiError::invalid(name, message))
    }
}

fn out_of_range(name: &str, value: impl std::fmt::Display, bounds: &str) -> ApiError {
    ApiError::invalid(name, format!("Invalid `{name}`: {value} is not {bounds}."))
}
