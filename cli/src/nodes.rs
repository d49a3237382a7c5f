//! `lorikeet nodes`: what an operator does for the machines that run nodes.

use anyhow::Context;
use clap::Subcommand;
use lorikeet_contract::NodeId;
use lorikeet_control_plane::link::{issue_node_token, load_or_create_signing_key};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Subcommand)]
pub enum Command {
    /// Issue the token by which a node joins
    ///
    /// Signed by the key that the control plane has as LORIKEET_NODE_SIGNING_KEY, which is made
    /// when the file is missing. A token names one node: issue one for each, and again before it
    /// expires (with --node, so that it stays the same node).
    #[command(after_help = "Example:\n  \
        lorikeet nodes token --node-signing-key node-signing-key.pem --name gpu-1 --out gpu-1.token\n  \
        lorikeet node --node-token-file gpu-1.token ...")]
    Token(Token),
}

#[derive(clap::Args)]
pub struct Token {
    #[arg(long, env = "LORIKEET_NODE_SIGNING_KEY", value_name = "FILE")]
    node_signing_key: PathBuf,
    /// What operators see
    #[arg(long)]
    name: String,
    /// An existing node's id [default: a new node]
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    days: u32,
    /// The token file to write, with mode 0600
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub fn run(command: Command) -> anyhow::Result<()> {
    let Command::Token(args) = command;
    let node = args.node.unwrap_or_else(NodeId::new);
    let life = Duration::from_secs(u64::from(args.days) * 24 * 3600);
    let token = issue(&args.node_signing_key, node, &args.name, life)?;
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&args.out)
        .and_then(|mut file| file.write_all(token.as_bytes()))
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("{node}: token for {} days in {}", args.days, args.out.display());
    Ok(())
}

pub fn issue(key: &Path, node: NodeId, name: &str, life: Duration) -> anyhow::Result<String> {
    issue_node_token(&load_or_create_signing_key(key)?, node, name, life)
}
