//! The built program, from the outside.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod demo;
mod doctor;
mod postgres;
