//! One step of the model: what it is made of, what executes it, and how a token is drawn.

pub mod backend;
mod exp;
pub mod model;
pub mod sampling;
