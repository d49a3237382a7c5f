//! Numbers and their bounds: what is checked here is what the API's description says.

use serde_json::{Value, json};

#[derive(Debug, Clone, Copy)]
pub struct Real {
    pub name: &'static str,
    pub default: f32,
    pub least: f32,
    /// `least` itself is not allowed.
    pub above: bool,
    pub most: f32,
    pub what: &'static str,
}

impl Real {
    pub fn allows(&self, value: f32) -> bool {
        let enough = if self.above { value > self.least } else { value >= self.least };
        enough && value <= self.most
    }

    pub fn bounds(&self) -> String {
        let Self { least, most, .. } = self;
        if self.above {
            format!("above {least} and at most {most}")
        } else {
            format!("between {least} and {most}")
        }
    }

    pub fn schema(&self) -> Value {
        let least = if self.above { "exclusiveMinimum" } else { "minimum" };
        json!({
            "type": ["number", "null"],
            least: self.least,
            "maximum": self.most,
            "default": self.default,
            "description": self.what,
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Integer {
    pub name: &'static str,
    pub least: u32,
    pub most: u32,
    pub what: &'static str,
}

impl Integer {
    pub fn allows(&self, value: u32) -> bool {
        (self.least..=self.most).contains(&value)
    }

    pub fn bounds(&self) -> String {
        format!("a whole number between {} and {}", self.least, self.most)
    }

    pub fn schema(&self) -> Value {
        json!({
            "type": ["integer", "null"],
            "minimum": self.least,
            "maximum": self.most,
            "description": self.what,
        })
    }
}
