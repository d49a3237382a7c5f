//! `lorikeet demo-s3`: the demo's object store as a process.

use anyhow::Context;
use lorikeet_s3::{Access, Config, Credential};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::TcpListener;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, env = "LORIKEET_S3_LISTEN")]
    listen: SocketAddr,
    #[arg(long, env = "LORIKEET_S3_ROOT")]
    root: PathBuf,
    #[arg(long, env = "LORIKEET_S3_BUCKET")]
    bucket: String,
    /// Origins of the pages that may upload, separated by commas
    #[arg(long, env = "LORIKEET_S3_ALLOWED_ORIGINS", value_delimiter = ',')]
    allowed_origins: Vec<String>,
    #[arg(long, env = "LORIKEET_S3_ACCESS_KEY")]
    access_key: String,
    #[arg(long, env = "LORIKEET_S3_SECRET_KEY", hide_env_values = true)]
    secret_key: String,
    #[arg(long, env = "LORIKEET_S3_READER_ACCESS_KEY")]
    reader_access_key: String,
    #[arg(long, env = "LORIKEET_S3_READER_SECRET_KEY", hide_env_values = true)]
    reader_secret_key: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    crate::predecessor::wait_until_gone(args.listen).await;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("the object store cannot listen on {}", args.listen))?;
    let config = Config {
        root: args.root,
        bucket: args.bucket,
        allowed_origins: args.allowed_origins,
        credentials: vec![
            Credential {
                access_key: args.access_key,
                secret_key: args.secret_key,
                access: Access::ReadWrite,
            },
            Credential {
                access_key: args.reader_access_key,
                secret_key: args.reader_secret_key,
                access: Access::ReadOnly,
            },
        ],
    };
    tracing::info!(listen = %args.listen, root = %config.root.display(), "object store serving");
    lorikeet_s3::serve(listener, config, crate::signals::shutdown()?).await?;
    Ok(())
}
