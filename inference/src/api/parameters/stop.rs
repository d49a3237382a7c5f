//! `stop`

use super::Fields;
use crate::api::error::ApiError;
use serde::Deserialize;

/// Most stop strings of one request, as OpenAI has it, and most bytes of one.
pub const MAX_STOPS: usize = 4;
pub const MAX_STOP_BYTES: usize = 1024;

#[derive(Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings is wanted")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

pub fn take(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop")? {
        None => Vec::new(),
        Some(Stop::One(one)) => vec![one],
        Some(Stop::Several(several)) => several,
    };
    let invalid = |what: &str| Err(ApiError::invalid("stop", format!("Invalid `stop`: {what}.")));
    if stops.len() > MAX_STOPS {
        return invalid(&format!("at most {MAX_STOPS} strings"));
    }
    if stops.iter().any(String::is_empty) {
        return invalid("a stop string is empty");
    }
    if stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        return invalid(&format!("a stop string is longer than {MAX_STOP_BYTES} bytes"));
    }
    Ok(stops)
}
