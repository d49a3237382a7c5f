//! The control plane from the outside: HTTP against a real PostgreSQL, as the real roles.

#![expect(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod account;
mod aliases;
mod bad_uploads;
mod disabling;
mod forgery;
mod ingest;
mod isolation;
mod keys;
mod limits;
mod link;
mod manifest;
mod metrics;
mod nodes;
mod pages;
mod pins;
mod push;
mod routes;
mod serving;
mod support;
mod uploads;
mod usage;
