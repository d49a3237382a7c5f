//! The control plane from the outside: HTTP against a real PostgreSQL, as the real roles.

mod account;
mod keys;
mod support;
