//! `logit_bias`

use super::Fields;
use crate::api::error::ApiError;
use std::collections::BTreeMap;

/// Far more than anybody writes by hand; each costs a little in every step.
pub const MAX_BIASES: usize = 1024;
pub const MAX_BIAS: f32 = 100.0;

pub fn take(fields: &mut Fields, vocab_size: u32) -> Result<Vec<(u32, f32)>, ApiError> {
    let name = "logit_bias";
    let invalid = |what: String| ApiError::invalid(name, format!("Invalid `{name}`: {what}."));
    let biases: BTreeMap<String, f32> = fields.take(name)?.unwrap_or_default();
    if biases.len() > MAX_BIASES {
        return Err(invalid(format!("at most {MAX_BIASES} tokens")));
    }
    let mut checked = BTreeMap::new();
    for (token, bias) in biases {
        let id = token.parse().ok().filter(|id| *id < vocab_size).ok_or_else(|| {
            invalid(format!("`{token}` is not one of this model's {vocab_size} token ids"))
        })?;
        if !(-MAX_BIAS..=MAX_BIAS).contains(&bias) {
            return Err(invalid(format!("{bias} is not between -{MAX_BIAS} and {MAX_BIAS}")));
        }
        // `1` and `01` are one token.
        if checked.insert(id, bias).is_some() {
            return Err(invalid(format!("token {id} is there twice")));
        }
    }
    Ok(checked.into_iter().collect())
}
