//! The link to the nodes: manifest and revocations out, acknowledgements and usage in.

mod feed;
mod nodes;
mod outgoing;
mod residency;
mod server;
mod session;
#[cfg(test)]
mod simulation;
mod state;
pub mod status;
mod tls;
pub mod token;

pub use server::{LinkParts, serve};
pub use tls::load_tls;
pub use token::{SigningKey, issue_node_token, load_or_create_signing_key};
