//! Where adapters come from: object storage, read in ranges with a read-only credential.

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata};
use bytes::Bytes;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;

/// Why bytes could not be read. The messages go to customers; the fields, which may name hosts
/// and paths, to the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error("its file is missing from the object store")]
    Missing(String),
    /// Worth another attempt.
    #[error("the object store is not available")]
    Unavailable { object: String, reason: String },
}

/// Read access to objects.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// The bytes of `range`; fewer when the object ends inside it.
    async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Bytes, ObjectError>;
}

/// Reach and credential of an S3 bucket.
#[derive(Clone)]
pub struct S3Config {
    pub endpoint: String,
    pub bucket: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
}

/// An S3 bucket, addressed in path style.
pub struct S3Store {
    client: Client,
    bucket: String,
}

impl S3Store {
    pub fn new(config: S3Config) -> Self {
        let credentials =
            Credentials::new(config.access_key, config.secret_key, None, None, "lorikeet");
        let sdk = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(config.endpoint)
            .region(Region::new(config.region))
            .credentials_provider(credentials)
            .force_path_style(true)
            // Ranges carry no checksum of the store; the artifact's digest is checked instead.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        Self { client: Client::from_conf(sdk), bucket: config.bucket }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let unavailable =
            |reason: String| ObjectError::Unavailable { object: object.to_owned(), reason };
        // HTTP ranges name their last byte.
        let last = range.end.saturating_sub(1);
        let response = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(object)
            .range(format!("bytes={}-{last}", range.start))
            .send()
            .await
            .map_err(|e| match e.code() {
                Some("NoSuchKey" | "NotFound") => ObjectError::Missing(object.to_owned()),
                _ => unavailable(DisplayErrorContext(&e).to_string()),
            })?;
        let body = response.body.collect().await.map_err(|e| unavailable(e.to_string()))?;
        Ok(body.into_bytes())
    }
}

/// A directory whose files are the objects; for tests and for a node without object storage.
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let path = self.root.join(object);
        let object = object.to_owned();
        let read = move || -> std::io::Result<Bytes> {
            let mut file = std::fs::File::open(path)?;
            file.seek(SeekFrom::Start(range.start))?;
            let mut bytes = Vec::new();
            file.take(range.end.saturating_sub(range.start)).read_to_end(&mut bytes)?;
            Ok(bytes.into())
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(ObjectError::Missing(object))
            }
            Ok(Err(e)) => Err(ObjectError::Unavailable { object, reason: e.to_string() }),
            Err(e) => Err(ObjectError::Unavailable { object, reason: e.to_string() }),
        }
    }
}
