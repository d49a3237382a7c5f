//! `/api/v1`: what customers' programs, the CLI and the pages call. One file per subject.

mod account;
pub mod extract;
mod keys;
mod service;

use crate::access::Registry;

pub(crate) fn routes(registry: Registry) -> Registry {
    let registry = service::routes(registry);
    let registry = account::routes(registry);
    keys::routes(registry)
}
