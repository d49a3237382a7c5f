//! Usage: taken in from the nodes' logs, summed by hour, shown to tenants and operators.

pub mod ingest;
mod position;
mod record;
