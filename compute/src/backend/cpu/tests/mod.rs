//! The backend from the outside: the kit's references, determinism, the contract of its trait.

mod allocations;
mod batches;
mod contract;
mod families;
mod harness;
mod kit;
mod speed;
mod tiny;
