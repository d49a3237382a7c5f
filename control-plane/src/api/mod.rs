//! `/api/v1`: what customers' programs, the CLI and the pages call. One file per subject.

mod account;
mod adapters;
mod aliases;
pub mod description;
pub mod extract;
mod keys;
mod operator;
mod schemas;
mod service;
mod uploads;
mod usage;

use crate::access::Registry;

pub(crate) fn routes(registry: Registry) -> Registry {
    let registry = service::routes(registry);
    let registry = account::routes(registry);
    let registry = keys::routes(registry);
    let registry = adapters::routes(registry);
    let registry = aliases::routes(registry);
    let registry = uploads::routes(registry);
    let registry = usage::routes(registry);
    operator::routes(registry)
}
