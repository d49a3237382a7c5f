//! The node from outside: real sockets, a simulated device, and a control plane told what to say.

mod access;
mod adapters;
mod canary;
mod chat;
mod choices;
mod collector;
mod completions;
mod control_plane;
mod deadlines;
mod description;
mod errors;
mod failures;
mod guided;
mod harness;
mod idempotency;
mod limits;
mod manifest;
mod many_streams;
mod metering;
mod responses;
mod schemas;
mod slow_clients;
mod sse;
mod stopping;
mod telemetry;
mod tools;
