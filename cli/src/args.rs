//! The command line. `--help` is a newcomer's first page: each command says what it does, what it
//! needs, and shows a line to paste.

use crate::variables::{ControlPlane, Flags, Node};
use crate::{adapters, bench, chat, demo, doctor, kernels, logging, migrate, nodes};
use clap::{Parser, Subcommand};

/// Serve many customers' LoRA adapters over one base model.
#[derive(Parser)]
#[command(name = "lorikeet", version, max_term_width = 100)]
#[command(after_help = "Start here:\n  \
    lorikeet doctor          # does this machine have what it takes?\n  \
    lorikeet demo            # the whole system, with two customers and their adapters\n  \
    lorikeet chat --model pirate --api-key lk_live_... \"Who are you?\"")]
pub struct Cli {
    /// Log lines go to standard error as `human` or `json`; LORIKEET_LOG filters them, such as
    /// `info,lorikeet_inference=debug`
    #[arg(long, global = true, env = "LORIKEET_LOG_FORMAT", value_name = "FORMAT", value_enum)]
    #[arg(default_value_t, hide_possible_values = true, help_heading = "Logging")]
    pub log_format: logging::Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the whole system on this machine, with two customers' adapters in it
    ///
    /// Starts a private PostgreSQL, an object store, the control plane and one node, each as a
    /// process of its own, and prints logins, API keys and lines to paste. Everything is kept for
    /// the next start. Ctrl-C stops it all.
    #[command(after_help = "Examples:\n  \
        lorikeet demo\n  \
        lorikeet demo --data /tmp/lorikeet --control-plane-port 8700\n  \
        lorikeet demo --reset")]
    Demo(demo::Args),
    /// Run the control plane: dashboard, /api/v1 and the nodes' link
    ///
    /// Its state is PostgreSQL and the object store, so any number of copies may run. Run
    /// `lorikeet migrate` first.
    #[command(after_help = "Example:\n  \
        lorikeet control-plane --database-url postgres://lk_app@db/lorikeet \\\n    \
        --s3-endpoint http://s3:8333 --s3-access-key ... --s3-secret-key ... \\\n    \
        --node-signing-key /etc/lorikeet/node-signing-key.pem")]
    ControlPlane(Flags<ControlPlane>),
    /// Run a node: one base model, many adapters, the OpenAI-compatible /v1
    ///
    /// Goes on serving while the control plane is away.
    #[command(after_help = "Example:\n  \
        lorikeet node --model SmolLM2-135M-Instruct.Q4_1.gguf --node-data /var/lib/lorikeet-node \\\n    \
        --control-plane http://control-plane:7730 --node-token-file gpu-1.token \\\n    \
        --s3-endpoint http://s3:8333 --s3-access-key ... --s3-secret-key ...")]
    Node(Flags<Node>),
    /// Bring the database up to this build; make an operator
    Migrate(migrate::Args),
    /// Check that this machine has what the demo needs, and say what fixes it
    Doctor(doctor::Args),
    /// Talk to a model or an adapter
    Chat(chat::Args),
    /// Upload and list adapters
    #[command(subcommand)]
    Adapters(adapters::Command),
    /// Let nodes join
    #[command(subcommand)]
    Nodes(nodes::Command),
    /// Measure speed
    #[command(subcommand)]
    Bench(bench::Command),
    /// Look after the GPU's kernels
    #[command(subcommand)]
    Kernels(kernels::KernelsCommand),
    /// The demo's private PostgreSQL: prepares the cluster, then becomes the server
    #[command(hide = true)]
    DemoPostgres(demo::postgres::Args),
    /// The demo's object store
    #[command(hide = true)]
    DemoS3(demo::s3::Args),
}
