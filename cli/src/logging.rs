//! Log lines go to standard error; standard output is for what was asked for.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// s3s puts whole requests into its spans: only its warnings are wanted.
const DEFAULT_FILTER: &str = "info,s3s=warn,s3s_fs=warn,sqlx=warn";

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub enum Format {
    /// For people; coloured on a terminal
    #[default]
    Human,
    /// One JSON object a line
    Json,
}

pub fn init(format: Format) {
    let filter =
        EnvFilter::try_from_env("LORIKEET_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Human => lines.init(),
        Format::Json => lines.json().init(),
    }
}
