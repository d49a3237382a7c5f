//! Looking settings up, and what is said when one is wrong.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} is not set: {what}")]
    Missing { name: &'static str, what: &'static str },
    #[error("{name} is not valid: `{value}`: {reason}")]
    Invalid { name: &'static str, value: String, reason: String },
}

/// Where settings are looked up; an empty value counts as unset.
#[derive(Clone, Copy)]
pub(super) struct Vars<'a>(pub &'a dyn Fn(&str) -> Option<String>);

impl Vars<'_> {
    pub fn optional<T>(self, name: &'static str) -> Result<Option<T>, ConfigError>
    where
        T: FromStr<Err: Display>,
    {
        let Some(value) = (self.0)(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(e) => Err(ConfigError::Invalid { name, value, reason: e.to_string() }),
        }
    }

    pub fn or<T: FromStr<Err: Display>>(
        self,
        name: &'static str,
        default: &str,
    ) -> Result<T, ConfigError> {
        if let Some(value) = self.optional(name)? {
            return Ok(value);
        }
        let reason =
            |e: T::Err| ConfigError::Invalid { name, value: default.into(), reason: e.to_string() };
        default.parse().map_err(reason)
    }

    pub fn required<T>(self, name: &'static str, what: &'static str) -> Result<T, ConfigError>
    where
        T: FromStr<Err: Display>,
    {
        self.optional(name)?.ok_or(ConfigError::Missing { name, what })
    }

    pub fn seconds(self, name: &'static str, default: u64) -> Result<Duration, ConfigError> {
        Ok(Duration::from_secs(self.optional(name)?.unwrap_or(default)))
    }

    pub fn positive(self, name: &'static str) -> Result<Option<u64>, ConfigError> {
        let value: Option<u64> = self.optional(name)?;
        if value != Some(0) {
            return Ok(value);
        }
        Err(ConfigError::Invalid { name, value: "0".into(), reason: "at least 1 is wanted".into() })
    }
}
