//! One adapter's way into the service: announce (which checks config and header), send the parts
//! straight to the object store, complete, and wait for the verdict.

use super::adapter_files::{AdapterFiles, LocalFile};
use super::{Client, Error};
use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// Parts on their way at a time.
const PARTS_AT_A_TIME: usize = 4;
/// How often one part is sent before the upload is given up (and can be resumed).
const ATTEMPTS: u32 = 4;
const PART_WITHIN: Duration = Duration::from_secs(300);
const ASK_EVERY: Duration = Duration::from_millis(150);

/// An upload that has been announced, with fresh addresses for its parts.
#[derive(Debug, Deserialize)]
pub struct Upload {
    pub upload_id: String,
    pub version: u32,
    state: String,
    files: Vec<UploadFile>,
}

#[derive(Debug, Deserialize)]
struct UploadFile {
    name: String,
    bytes: u64,
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    number: u32,
    offset: u64,
    bytes: u64,
    /// None once the upload is not open any more.
    url: Option<String>,
    received: bool,
}

/// One version of an adapter, as the control plane describes it.
#[derive(Debug, Deserialize)]
pub struct Version {
    pub version: u32,
    pub state: String,
    pub error: Option<Refusal>,
    /// What has to happen elsewhere first, in words.
    waiting_for: Option<String>,
}

impl Version {
    /// Uploaded whole, and neither ready nor refused yet.
    pub fn is_on_its_way(&self) -> bool {
        matches!(self.state.as_str(), "verifying" | "verified")
    }
}

#[derive(Debug, Deserialize)]
pub struct Refusal {
    pub code: String,
    pub message: String,
}

/// What a progress bar wants to know.
pub trait Progress: Sync {
    /// Bytes that have arrived, now or in an earlier attempt.
    fn arrived(&self, bytes: u64);
}

pub async fn announce(
    client: &Client,
    name: &str,
    adapter: &AdapterFiles,
) -> Result<Upload, Error> {
    let file = |file: &LocalFile| json!({ "name": file.name, "bytes": file.bytes });
    let body = json!({
        "files": adapter.files.iter().map(file).collect::<Vec<_>>(),
        "config": adapter.config,
        "header": adapter.header_base64(),
    });
    client.send(Method::POST, &format!("/adapters/{name}/versions"), &body).await
}

/// An upload that broke off, unless it has been completed or given up since. Its parts that have
/// arrived stay.
pub async fn reopen(client: &Client, upload_id: &str) -> Result<Option<Upload>, Error> {
    let upload: Upload = client.get(&format!("/uploads/{upload_id}")).await?;
    Ok(Some(upload).filter(|upload| upload.state == "open"))
}

/// Sends what has not arrived yet, then completes.
pub async fn send(
    client: &Client,
    upload: &Upload,
    adapter: &AdapterFiles,
    progress: &impl Progress,
) -> anyhow::Result<()> {
    let paths: HashMap<&str, &LocalFile> = adapter.files.iter().map(|f| (f.name, f)).collect();
    let mut missing = Vec::new();
    for file in &upload.files {
        let local =
            paths.get(file.name.as_str()).filter(|local| local.bytes == file.bytes).with_context(
                || format!("the upload expects a {} of {} bytes", file.name, file.bytes),
            )?;
        for part in &file.parts {
            if part.received {
                progress.arrived(part.bytes);
            } else {
                missing.push((*local, part));
            }
        }
    }
    stream::iter(missing)
        .map(|(local, part)| async move {
            let etag = send_part(client, &local.path, part).await?;
            report(client, upload, local.name, part, &etag).await?;
            progress.arrived(part.bytes);
            anyhow::Ok(())
        })
        .buffer_unordered(PARTS_AT_A_TIME)
        .try_collect::<()>()
        .await?;
    let path = format!("/uploads/{}/complete", upload.upload_id);
    client.send_only(Method::POST, &path, &json!({})).await?;
    Ok(())
}

async fn send_part(client: &Client, path: &Path, part: &Part) -> anyhow::Result<String> {
    let mut attempt = 1;
    loop {
        match try_part(client, path, part).await {
            Ok(etag) => return Ok(etag),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(error) => tracing::debug!(%error, part = part.number, attempt, "part not sent"),
        }
        tokio::time::sleep(Duration::from_millis(250) * 2u32.pow(attempt)).await;
        attempt += 1;
    }
}

async fn try_part(client: &Client, path: &Path, part: &Part) -> anyhow::Result<String> {
    let mut file = tokio::fs::File::open(path)
        .await
        .with_context(|| format!("cannot read {}", path.display()))?;
    file.seek(std::io::SeekFrom::Start(part.offset)).await?;
    let mut bytes = Vec::new();
    file.take(part.bytes).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 != part.bytes {
        bail!("{} has become shorter since the upload began", path.display());
    }
    let response = client
        .http
        .put(part.url.as_deref().context("the upload is not open any more")?)
        .timeout(PART_WITHIN)
        .body(bytes)
        .send()
        .await
        // The address is signed: it is not for terminals and logs.
        .map_err(|e| e.without_url())
        .context("the object store cannot be reached")?;
    if !response.status().is_success() {
        bail!("the object store refused a part: {}", response.status());
    }
    let etag = response.headers().get("etag").and_then(|value| value.to_str().ok());
    Ok(etag.context("the object store gave no ETag for a part")?.to_owned())
}

async fn report(
    client: &Client,
    upload: &Upload,
    file: &str,
    part: &Part,
    etag: &str,
) -> Result<(), Error> {
    let part = json!({ "file": file, "number": part.number, "etag": etag, "bytes": part.bytes });
    let path = format!("/uploads/{}/parts", upload.upload_id);
    client.send_only(Method::PUT, &path, &json!({ "parts": [part] })).await
}

/// Waits until the version is served by every node, or refused. `on_state` hears of each change.
pub async fn wait(
    client: &Client,
    name: &str,
    version: u32,
    limit: Duration,
    mut on_state: impl FnMut(&str),
) -> anyhow::Result<Version> {
    let path = format!("/adapters/{name}/versions/{version}");
    let started = Instant::now();
    let mut last = String::new();
    loop {
        let now: Version = client.get(&path).await?;
        if now.state != last {
            on_state(&now.state);
            last.clone_from(&now.state);
        }
        if matches!(now.state.as_str(), "ready" | "failed" | "deleted") {
            return Ok(now);
        }
        if started.elapsed() > limit {
            let reason = now.waiting_for.unwrap_or_else(|| format!("still {}", now.state));
            bail!("{name} is not ready after {} s: {reason}", limit.as_secs());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// One of the tenant's adapters.
#[derive(Debug, Deserialize)]
pub struct Adapter {
    pub name: String,
    /// The newest that answers.
    pub serving_version: Option<u32>,
    pub disabled: bool,
    pub latest_version: Option<Version>,
    pub aliases: Vec<Alias>,
}

/// A name that points at a version.
#[derive(Debug, Deserialize)]
pub struct Alias {
    pub alias: String,
    pub version: u32,
}

/// `None` when the tenant has no adapter of this name.
pub async fn find(client: &Client, name: &str) -> Result<Option<Adapter>, Error> {
    match client.get(&format!("/adapters/{name}")).await {
        Ok(adapter) => Ok(Some(adapter)),
        Err(Error::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}
