//! Random adapters, and an object store that has them.

use crate::adapters::{AdapterKey, AdapterManifest, ObjectError, ObjectStore};
use async_trait::async_trait;
use bytes::Bytes;
use lorikeet_compute::backend::cuda::check::{AdapterShape, random_adapter};
use lorikeet_contract::adapter::{ArtifactHeader, Dtype, TensorRef};
use lorikeet_contract::digest::{CHUNK_BYTES, leaf};
use lorikeet_contract::{AdapterDigest, BaseModelSpec, ContentDigest, Linear, TenantId};
use std::ops::Range;
use std::sync::Arc;

/// Adapters of one kind.
pub(super) struct AdapterSet<'a> {
    pub count: u32,
    pub rank: u32,
    pub linears: &'a [Linear],
}

/// Adapters that, inside a set, differ in their headers only; each is loaded and read by itself all
/// the same.
#[derive(Default)]
pub(super) struct RandomStore {
    sets: Vec<Set>,
}

struct Set {
    headers: Vec<Bytes>,
    data: Bytes,
}

impl RandomStore {
    /// Of all adapters together.
    pub fn bytes(&self) -> u64 {
        let set = |set: &Set| -> u64 {
            set.headers.iter().map(|header| (header.len() + set.data.len()) as u64).sum()
        };
        self.sets.iter().map(set).sum()
    }

    /// Draws a set of adapters.
    pub fn add(&mut self, spec: &BaseModelSpec, set: AdapterSet<'_>) -> Vec<Arc<AdapterManifest>> {
        if set.count == 0 {
            return Vec::new();
        }
        let place = self.sets.len();
        let (set, manifests) = draw(spec, set, place as u32);
        self.sets.push(set);
        manifests
    }
}

#[async_trait]
impl ObjectStore for RandomStore {
    async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let found = object.split_once('/').and_then(|(set, index)| {
            let set = self.sets.get(set.parse::<usize>().ok()?)?;
            Some((set.headers.get(index.parse::<usize>().ok()?)?, &set.data))
        });
        let Some((header, data)) = found else {
            return Err(ObjectError::Missing(object.into()));
        };
        Ok(piece(header, data, range).into())
    }
}

/// Bytes of two slices that stand one after the other.
fn piece(header: &[u8], data: &[u8], range: Range<u64>) -> Vec<u8> {
    let split = header.len();
    let end = (range.end as usize).min(split + data.len());
    let start = (range.start as usize).min(end);
    let first = &header[start.min(split)..end.min(split)];
    let second = &data[start.saturating_sub(split)..end.saturating_sub(split)];
    [first, second].concat()
}

fn draw(
    spec: &BaseModelSpec,
    AdapterSet { count, rank, linears }: AdapterSet<'_>,
    place: u32,
) -> (Set, Vec<Arc<AdapterManifest>>) {
    let shape = AdapterShape { rank, linears: linears.to_vec(), dora: false, dtype: Dtype::BF16 };
    let one = random_adapter(spec, &shape, 1 + u64::from(place));
    let data = Bytes::copy_from_slice(one.file().expect("nothing has prepared it"));
    let headers: Vec<(AdapterDigest, Bytes)> = (0..count)
        .map(|index| {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&index.to_le_bytes());
            digest[4..8].copy_from_slice(&place.to_le_bytes());
            let digest = AdapterDigest(digest);
            (digest, encode(ArtifactHeader { adapter_digest: digest, ..one.header.clone() }))
        })
        .collect();
    let tenant = TenantId::from_uuid(uuid::Uuid::nil());
    // Headers are of one length, so that all but the first leaf of the hash are common.
    let total = (headers[0].1.len() + data.len()) as u64;
    let chunk = |header: &[u8], index: u64| {
        let start = index * CHUNK_BYTES as u64;
        leaf(&piece(header, &data, start..start + CHUNK_BYTES as u64))
    };
    let later: Vec<[u8; 32]> =
        (1..total.div_ceil(CHUNK_BYTES as u64)).map(|index| chunk(&headers[0].1, index)).collect();
    let manifests = (0..)
        .zip(&headers)
        .map(|(index, (digest, header)): (u64, _)| {
            let leaves = std::iter::once(chunk(header, 0)).chain(later.iter().copied());
            Arc::new(AdapterManifest {
                key: AdapterKey { tenant, digest: *digest },
                object_key: format!("{place}/{index}"),
                bytes: total,
                artifact_digest: ContentDigest::from_leaves(leaves, total).into(),
                max_rank: rank,
            })
        })
        .collect();
    let headers = headers.into_iter().map(|(_, header)| header).collect();
    (Set { headers, data }, manifests)
}

/// Offsets count from the start of the file, and so depend on the header's own length.
fn encode(header: ArtifactHeader) -> Bytes {
    let mut start = 0;
    loop {
        let mut shifted = header.clone();
        let shift = |t: &mut TensorRef| t.offset += start;
        for module in &mut shifted.modules {
            shift(&mut module.a);
            shift(&mut module.b);
            module.magnitude.iter_mut().for_each(shift);
        }
        let encoded = shifted.encode();
        if encoded.len() as u64 == start {
            return encoded.into();
        }
        start = encoded.len() as u64;
    }
}
