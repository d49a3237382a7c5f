//! The node: it holds one base model, pages adapters from object storage to disk, host memory and
//! device slots, and answers customers by itself.

pub mod adapters;
pub mod api;
pub mod bench;
pub mod config;
mod durable;
pub mod engine;
#[cfg(test)]
mod fixture;
pub mod guidance;
pub mod kv;
pub mod limits;
pub mod link;
pub mod node;
pub mod scheduler;
pub mod share;
pub mod telemetry;
pub mod usage;

#[cfg(test)]
mod purity;
