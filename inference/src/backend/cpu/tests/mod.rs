//! The backend from the outside: the kit's references, determinism, the contract of its trait.

mod harness;
mod kit;
mod speed;
