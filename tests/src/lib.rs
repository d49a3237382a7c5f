//! A whole Lorikeet for tests: the program itself, started as a user starts it, with a data directory
//! and ports of its own, and the means to kill any part and bring it back.

pub mod browser;
pub mod chat;
pub mod clients;
pub mod demo;
pub mod ledger;

pub use demo::{Demo, Facts, Process, Tenant};
