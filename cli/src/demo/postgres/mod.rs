//! A private PostgreSQL. `lorikeet demo-postgres` prepares the cluster and then *becomes* the
//! server by `exec`: the process that the demo lists is the postmaster itself, there is no launcher
//! that could die apart from it, and running the same command again is the whole recovery.

mod account;
mod binaries;
mod cluster;
mod processes;

pub use binaries::Binaries;
pub use cluster::Cluster;

use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Where the cluster and its socket live; the cluster is created when missing
    #[arg(long, env = "LORIKEET_POSTGRES_DIR")]
    dir: PathBuf,
    /// The directory of the programs `postgres` and `initdb` [default: looked for]
    #[arg(long, env = "LORIKEET_POSTGRES_BIN")]
    bin: Option<PathBuf>,
}

/// Returns only to say why the server could not be started.
pub fn exec(args: &Args) -> anyhow::Result<()> {
    let cluster = Cluster::new(&args.dir)?;
    let binaries = Binaries::find(args.bin.as_deref(), cluster.major_version()?)?;
    cluster.prepare(&binaries)?;
    Err(cluster.exec(&binaries))
}
