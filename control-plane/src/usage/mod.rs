//! Usage: taken in from the nodes' logs, summed by hour, shown to tenants and operators.

pub mod ingest;
mod last_used;
mod ledger;
pub mod period;
mod position;
pub mod queries;
pub mod reconcile;
mod record;
pub mod tenants;
