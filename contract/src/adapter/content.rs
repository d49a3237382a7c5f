//! The whole of an upload: reads every byte once, refuses values that are not finite and makes the
//! digest.

use super::check::AdapterPlan;
use super::config::AdapterConfig;
use super::error::{AdapterError, quoted};
use super::files;
use super::safetensors::{Header, TensorInfo};
use super::values::first_non_finite;
use crate::base_model::BaseModelSpec;
use crate::digest::{AdapterDigest, ContentHasher};
use std::io::{self, Read, Seek, SeekFrom};

/// Read at a time, in bytes: whole elements of every dtype.
const BUFFER_BYTES: usize = 1 << 20;
/// Starts every hashed content; a change of the form below changes it.
const DOMAIN: &[u8] = b"lorikeet adapter content 1\0";

/// The adapter is refused, or could not be read to the end.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error(transparent)]
    Refused(#[from] AdapterError),
    #[error("the weights could not be read: {0}")]
    Read(#[from] io::Error),
}

/// An adapter that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspected {
    pub plan: AdapterPlan,
    pub digest: AdapterDigest,
}

/// All checks of an upload that is at hand whole: the bytes of adapter_config.json, and
/// adapter_model.safetensors as `weights`.
pub fn inspect(
    config: &[u8],
    weights: &mut (impl Read + Seek),
    base: &BaseModelSpec,
) -> Result<Inspected, ContentError> {
    let config = AdapterConfig::parse(config)?;
    let header = read_header(weights)?;
    let plan = AdapterPlan::new(&config, &header, base)?;
    let digest = digest(&config, &header, weights)?;
    Ok(Inspected { plan, digest })
}

fn read_header(weights: &mut (impl Read + Seek)) -> Result<Header, ContentError> {
    let file_len = weights.seek(SeekFrom::End(0))?;
    weights.rewind()?;
    // Enough to tell an archive by its signature, which lies in the first 262 bytes.
    let mut prefix = Vec::new();
    weights.by_ref().take(512).read_to_end(&mut prefix)?;
    files::refuse_disguise(&prefix)?;
    let rest = Header::prefix_len(&prefix, file_len)?.saturating_sub(prefix.len());
    weights.by_ref().take(rest as u64).read_to_end(&mut prefix)?;
    Ok(Header::parse(&prefix, file_len)?)
}

/// Reads every tensor of the safetensors file `source` and returns the content's identity: the
/// configuration without cosmetic keys, then in the order of their names each tensor's name, dtype,
/// shape and bytes. Where the tensors lie in the file does not count.
pub fn digest(
    config: &AdapterConfig,
    header: &Header,
    source: &mut (impl Read + Seek),
) -> Result<AdapterDigest, ContentError> {
    let mut hasher = ContentHasher::new();
    hasher.update(DOMAIN);
    put(&mut hasher, &config.canonical());
    let mut buffer = vec![0; BUFFER_BYTES];
    for tensor in header.tensors() {
        put(&mut hasher, tensor.name.as_bytes());
        hasher.update(&[tensor.dtype as u8, tensor.shape.len() as u8]);
        for dim in &tensor.shape {
            hasher.update(&dim.to_le_bytes());
        }
        source.seek(SeekFrom::Start(tensor.offset))?;
        hash_values(tensor, source, &mut buffer, &mut hasher)?;
    }
    Ok(hasher.finish().into())
}

/// With its length, so that no two sequences of fields have one encoding.
fn put(hasher: &mut ContentHasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn hash_values(
    tensor: &TensorInfo,
    source: &mut impl Read,
    buffer: &mut [u8],
    hasher: &mut ContentHasher,
) -> Result<(), ContentError> {
    let mut done = 0;
    while done < tensor.bytes {
        let take = (tensor.bytes - done).min(buffer.len() as u64) as usize;
        let chunk = &mut buffer[..take];
        source.read_exact(chunk)?;
        if let Some((index, value)) = first_non_finite(tensor.dtype, chunk) {
            return Err(AdapterError::NonFinite {
                tensor: quoted(&tensor.name),
                value,
                index: done / tensor.dtype.size() as u64 + index as u64,
            }
            .into());
        }
        hasher.update(chunk);
        done += take as u64;
    }
    Ok(())
}
