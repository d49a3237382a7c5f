//! The whole system, as its users see it.

mod bench;
mod clients;
mod engine;
mod faults;
mod fuzz;
mod journey;
mod nodes;
mod stopping;
