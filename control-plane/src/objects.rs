//! The object store: an S3 bucket in path style.
//!
//! ```text
//! t/<tenant>/uploads/<upload>/<file>       staged by the customer
//! t/<tenant>/a/<digest>/source/<file>      verified, as uploaded
//! t/<tenant>/a/<digest>/layout-1.lka       verified, as nodes load it
//! ```
//! The tenant is part of every key: identical uploads of two tenants share nothing.

use crate::config::ObjectStoreConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use lorikeet_contract::adapter::LAYOUT_VERSION;
use lorikeet_contract::{AdapterDigest, TenantId, UploadId};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use url::Url;

pub fn staged_key(tenant: TenantId, upload: UploadId, file: &str) -> String {
    format!("t/{}/uploads/{}/{file}", tenant.as_uuid(), upload.as_uuid())
}

pub fn source_key(tenant: TenantId, digest: AdapterDigest, file: &str) -> String {
    format!("t/{}/a/{digest}/source/{file}", tenant.as_uuid())
}

pub fn artifact_key(tenant: TenantId, digest: AdapterDigest) -> String {
    format!("t/{}/a/{digest}/layout-{LAYOUT_VERSION}.lka", tenant.as_uuid())
}

/// The store could not be reached or refused an operation that it should have done.
#[derive(Debug, thiserror::Error)]
#[error("object store: {operation} of `{key}`: {reason}")]
pub struct ObjectError {
    operation: &'static str,
    key: String,
    reason: String,
}

/// Why a multipart upload was not put together.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// The parts are not what the client reported: it has to send them again.
    #[error("the object store does not accept the parts")]
    Rejected,
    #[error(transparent)]
    Store(#[from] ObjectError),
}

/// Why an object was not downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("the object is larger than {0} bytes")]
    TooLarge(u64),
    #[error(transparent)]
    Store(#[from] ObjectError),
    #[error("writing the download: {0}")]
    Write(#[from] std::io::Error),
}

#[derive(Clone)]
pub struct Objects {
    client: Client,
    /// Signs URLs for customers, who reach the store under another address.
    signer: Client,
    bucket: String,
}

impl Objects {
    pub fn new(config: &ObjectStoreConfig) -> Self {
        Self {
            client: client(config, &config.endpoint),
            signer: client(config, &config.public_endpoint),
            bucket: config.bucket.clone(),
        }
    }

    /// Returns the multipart upload's id.
    pub async fn start_multipart(&self, key: &str) -> Result<String, ObjectError> {
        let request = self.client.create_multipart_upload().bucket(&self.bucket).key(key);
        let started = request.send().await.map_err(|e| failed("start of upload", key, e))?;
        started.upload_id.ok_or_else(|| ObjectError {
            operation: "start of upload",
            key: key.to_owned(),
            reason: "the answer names no upload".into(),
        })
    }

    /// A URL to PUT one part to. Its length is signed: a body of another length is refused.
    pub async fn presign_part(
        &self,
        key: &str,
        s3_upload_id: &str,
        number: i32,
        bytes: u64,
        valid_for: Duration,
    ) -> Result<String, ObjectError> {
        let error = |reason: String| ObjectError {
            operation: "signing of a part",
            key: key.to_owned(),
            reason,
        };
        let length = i64::try_from(bytes).map_err(|e| error(e.to_string()))?;
        let expiry = PresigningConfig::expires_in(valid_for).map_err(|e| error(e.to_string()))?;
        let request = self.signer.upload_part().bucket(&self.bucket).key(key);
        let request = request.upload_id(s3_upload_id).part_number(number).content_length(length);
        let signed = request.presigned(expiry).await.map_err(|e| failed("signing", key, e))?;
        Ok(signed.uri().to_owned())
    }

    /// Puts the parts together; done already is well done. `parts` are numbers and ETags in order.
    pub async fn finish_multipart(
        &self,
        key: &str,
        s3_upload_id: &str,
        parts: impl IntoIterator<Item = (i32, String)>,
        bytes: u64,
    ) -> Result<(), FinishError> {
        let part = |(n, etag)| CompletedPart::builder().part_number(n).e_tag(etag).build();
        let parts = parts.into_iter().map(part).collect();
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.client.complete_multipart_upload().bucket(&self.bucket).key(key);
        let Err(error) = request.upload_id(s3_upload_id).multipart_upload(parts).send().await
        else {
            return self.require_size(key, bytes).await;
        };
        match error.code() {
            // An earlier attempt of ours may have done it.
            Some("NoSuchUpload") => self.require_size(key, bytes).await,
            Some("InvalidPart" | "InvalidPartOrder" | "EntityTooSmall") => {
                Err(FinishError::Rejected)
            }
            _ => Err(failed("end of upload", key, error).into()),
        }
    }

    async fn require_size(&self, key: &str, bytes: u64) -> Result<(), FinishError> {
        match self.size(key).await? {
            Some(size) if size == bytes => Ok(()),
            _ => Err(FinishError::Rejected),
        }
    }

    /// Gives up an unfinished upload and its parts. One that is unknown or finished is left alone.
    pub async fn abort_multipart(&self, key: &str, s3_upload_id: &str) -> Result<(), ObjectError> {
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(key);
        match request.upload_id(s3_upload_id).send().await {
            Err(e) if e.code() != Some("NoSuchUpload") => Err(failed("abort of upload", key, e)),
            _ => Ok(()),
        }
    }

    /// In bytes; none when there is no such object.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, ObjectError> {
        let head = self.client.head_object().bucket(&self.bucket).key(key).send().await;
        match head {
            Ok(head) => Ok(head.content_length.and_then(|n| u64::try_from(n).ok())),
            Err(e) if e.as_service_error().is_some_and(|e| e.is_not_found()) => Ok(None),
            Err(e) => Err(failed("look at", key, e)),
        }
    }

    /// Writes the object to a new file at `path` and returns its size. Stops above `limit` bytes.
    pub async fn download(&self, key: &str, limit: u64, path: &Path) -> Result<u64, DownloadError> {
        let request = self.client.get_object().bucket(&self.bucket).key(key);
        let mut body = request.send().await.map_err(|e| failed("download", key, e))?.body;
        let mut file = tokio::fs::File::create(path).await?;
        let mut bytes = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| ObjectError {
                operation: "download",
                key: key.to_owned(),
                reason: e.to_string(),
            })?;
            bytes += chunk.len() as u64;
            if bytes > limit {
                return Err(DownloadError::TooLarge(limit));
            }
            file.write_all(&chunk).await?;
        }
        file.flush().await?;
        Ok(bytes)
    }

    pub async fn upload_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        let body = ByteStream::from_path(path).await.map_err(|e| ObjectError {
            operation: "upload",
            key: key.to_owned(),
            reason: e.to_string(),
        })?;
        let request = self.client.put_object().bucket(&self.bucket).key(key).body(body);
        request.send().await.map(drop).map_err(|e| failed("upload", key, e))
    }

    /// Inside the store, at most 5 GiB.
    pub async fn copy(&self, from: &str, to: &str) -> Result<(), ObjectError> {
        let source = format!("{}/{from}", self.bucket);
        let request = self.client.copy_object().bucket(&self.bucket).key(to).copy_source(source);
        request.send().await.map(drop).map_err(|e| failed("copy", from, e))
    }

    /// An object that is gone already is fine.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        match self.client.delete_object().bucket(&self.bucket).key(key).send().await {
            Err(e) if e.code() != Some("NoSuchKey") => Err(failed("delete", key, e)),
            _ => Ok(()),
        }
    }
}

fn client(config: &ObjectStoreConfig, endpoint: &Url) -> Client {
    let credentials = Credentials::new(
        config.access_key.clone(),
        config.secret_key.reveal(),
        None,
        None,
        "lorikeet",
    );
    let sdk = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint.as_str().trim_end_matches('/'))
        .region(Region::new(config.region.clone()))
        .credentials_provider(credentials)
        .force_path_style(true)
        // The content's own digest is checked instead, and a browser cannot add trailers.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Client::from_conf(sdk)
}

fn failed<E, R>(operation: &'static str, key: &str, error: SdkError<E, R>) -> ObjectError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug,
{
    let reason = match (&error, error.code()) {
        (SdkError::ServiceError(_), Some(code)) => {
            [code, error.message().unwrap_or_default()].join(" ")
        }
        _ => DisplayErrorContext(&error).to_string(),
    };
    ObjectError { operation, key: key.to_owned(), reason }
}
