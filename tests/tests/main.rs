//! The whole system, as its users see it.

mod faults;
mod journey;
mod nodes;
