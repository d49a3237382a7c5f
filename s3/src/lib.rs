//! An S3 API over a directory: s3s and s3s-fs behind our own CORS layer and access rules.
//!
//! The demo's and the tests' object store, never production's: it does not fsync, and its
//! `If-None-Match` is check-then-write. Clients speak to it as they speak to S3.

mod access;
mod cors;

use access::Credentials;
use axum::error_handling::HandleError;
use axum::http::StatusCode;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::path::PathBuf;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone)]
pub struct Config {
    /// Where buckets and objects are kept; created when missing.
    pub root: PathBuf,
    /// Created when missing.
    pub bucket: String,
    /// Origins whose pages may upload, such as `http://127.0.0.1:7700`; every other one is refused
    /// by the browser.
    pub allowed_origins: Vec<String>,
    pub credentials: Vec<Credential>,
}

#[derive(Debug, Clone)]
pub struct Credential {
    pub access_key: String,
    pub secret_key: String,
    pub access: Access,
}

/// What a credential may do. Requests without one are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    /// Read and list objects: what a node needs.
    ReadOnly,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot create {path}: {source}")]
    Create { path: PathBuf, source: std::io::Error },
    #[error("cannot open the object store in {path}: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error("`{0}` is not an origin (expected such as http://127.0.0.1:7700)")]
    Origin(String),
    #[error("the object store stopped serving: {0}")]
    Serve(std::io::Error),
}

/// Serves until `shutdown`, then lets the requests in flight finish.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let cors = cors::layer(&config.allowed_origins)?;
    let objects = HandleError::new(service(config)?, |error: s3s::HttpError| async move {
        tracing::error!(?error, "object store request failed");
        StatusCode::INTERNAL_SERVER_ERROR
    });
    let app = axum::Router::new().fallback_service(objects).layer(cors);
    axum::serve(listener, app)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(Error::Serve)
}

fn service(config: Config) -> Result<S3Service, Error> {
    let bucket = config.root.join(&config.bucket);
    std::fs::create_dir_all(&bucket).map_err(|source| Error::Create { path: bucket, source })?;
    let files = s3s_fs::FileSystem::new(&config.root)
        .map_err(|e| Error::Open { path: config.root.clone(), reason: format!("{e:?}") })?;
    let mut auth = SimpleAuth::new();
    for credential in &config.credentials {
        auth.register(credential.access_key.clone(), credential.secret_key.as_str().into());
    }
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(auth);
    builder.set_access(Credentials::new(&config.credentials));
    Ok(builder.build())
}
