//! The control plane from the outside: HTTP against a real PostgreSQL, as the real roles.

#![expect(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod account;
mod aliases;
mod attaching;
mod bad_uploads;
mod checks;
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
mod plane;
mod push;
mod routes;
mod serving;
mod support;
mod upload_ends;
mod upload_refusals;
mod uploads;
mod usage;
