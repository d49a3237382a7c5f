//! The header of a safetensors file, read strictly: 8 bytes of length (u64 LE), JSON, then the
//! tensors' bytes without holes. https://huggingface.co/docs/safetensors, section Format.
//!
//! Reads from the first bytes and the file's length alone, and allocates no more than the header
//! given to it holds.

use super::artifact::Dtype;
use super::error::{AdapterError, cut, quoted};
use super::files::{self, MAX_WEIGHTS_BYTES, WEIGHTS_FILE};
use super::json::UniqueMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// Largest JSON header, in bytes.
pub const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Most tensors in one file.
pub const MAX_TENSORS: usize = 4096;
/// Longest name of a tensor, in bytes.
const MAX_NAME_BYTES: usize = 512;
const MAX_DIMENSIONS: usize = 8;
const METADATA: &str = "__metadata__";

/// One tensor's place and form. Row-major, little endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Equal to the product of `shape` times the dtype's size; never zero.
    pub bytes: u64,
}

/// A checked header: every tensor lies inside the file, none overlap, nothing lies between or
/// after them. Tensors stand in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    tensors: Vec<TensorInfo>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Header {
    /// How many bytes of the file [`Header::parse`] needs, from its first 8 bytes (fewer only when
    /// the file is shorter) and its length.
    pub fn prefix_len(first: &[u8], file_len: u64) -> Result<usize, AdapterError> {
        files::check_size(WEIGHTS_FILE, file_len, MAX_WEIGHTS_BYTES)?;
        let Some(first) = first.first_chunk::<8>() else {
            return Err(invalid("is shorter than its own header: the upload was cut off"));
        };
        let len = u64::from_le_bytes(*first);
        if len > MAX_HEADER_BYTES {
            return Err(invalid(format!(
                "claims a header of {len} bytes, at most {MAX_HEADER_BYTES} are accepted: it is not a safetensors file or is damaged"
            )));
        }
        if 8 + len > file_len {
            return Err(invalid("ends inside its header: the upload was cut off, send it again"));
        }
        Ok(8 + len as usize)
    }

    /// Reads the header from the first bytes of a file of `file_len` bytes. `prefix` must hold at
    /// least [`Header::prefix_len`] of them and may hold more.
    pub fn parse(prefix: &[u8], file_len: u64) -> Result<Self, AdapterError> {
        files::refuse_disguise(prefix)?;
        let end = Self::prefix_len(prefix, file_len)?;
        let json = prefix
            .get(8..end)
            .ok_or_else(|| invalid("was read without its whole header: send its first bytes"))?;
        if json.first() != Some(&b'{') {
            return Err(invalid("has a header that is not a JSON object: save the adapter again"));
        }
        let entries: UniqueMap<&RawValue> = serde_json::from_slice(json).map_err(|e| {
            invalid(format!("has a header that does not read: {}", cut(&e.to_string())))
        })?;
        let mut tensors = Vec::new();
        for (name, entry) in entries.0 {
            if name == METADATA {
                check_metadata(entry)?;
                continue;
            }
            if tensors.len() == MAX_TENSORS {
                return Err(invalid(format!("has more than {MAX_TENSORS} tensors")));
            }
            tensors.push(tensor(name, entry, end as u64)?);
        }
        check_coverage(&mut tensors, end as u64, file_len)?;
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { tensors })
    }

    /// In the order of their names.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
}

fn check_metadata(raw: &RawValue) -> Result<(), AdapterError> {
    serde_json::from_str::<UniqueMap<IgnoredAny>>(raw.get())
        .map(drop)
        .map_err(|e| invalid(format!("has {METADATA} that does not read: {}", cut(&e.to_string()))))
}

fn tensor(name: String, raw: &RawValue, data_start: u64) -> Result<TensorInfo, AdapterError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(invalid(format!("has a tensor name over {MAX_NAME_BYTES} bytes long")));
    }
    let of = |what: &str| invalid(format!("is damaged: tensor {} {what}", quoted(&name)));
    let entry: Entry = serde_json::from_str(raw.get())
        .map_err(|e| of(&format!("does not read: {}", cut(&e.to_string()))))?;
    if entry.shape.len() > MAX_DIMENSIONS {
        return Err(of(&format!("has more than {MAX_DIMENSIONS} dimensions")));
    }
    let dtype = match entry.dtype.as_str() {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::BF16,
        other => {
            return Err(AdapterError::Dtype { tensor: quoted(&name), dtype: quoted(other) });
        }
    };
    let size = entry
        .shape
        .iter()
        .try_fold(dtype.size() as u64, |size, dim| size.checked_mul(*dim))
        .ok_or_else(|| of("has a shape whose size overflows 64 bits"))?;
    if size == 0 {
        return Err(of("is empty"));
    }
    let (begin, end) = entry.data_offsets;
    if end.checked_sub(begin) != Some(size) {
        return Err(of(&format!(
            "has shape {:?} in {}, which is {size} bytes, but its data_offsets are {begin} to {end}",
            entry.shape, entry.dtype
        )));
    }
    let offset = data_start.checked_add(begin).ok_or_else(|| of("lies past the end"))?;
    Ok(TensorInfo { name, dtype, shape: entry.shape, offset, bytes: size })
}

/// Leaves `tensors` in the order of their bytes.
fn check_coverage(
    tensors: &mut [TensorInfo],
    data_start: u64,
    file_len: u64,
) -> Result<(), AdapterError> {
    tensors.sort_by_key(|t| t.offset);
    let mut at = data_start;
    let mut before = None;
    for t in tensors {
        if let Some(before) = before.filter(|_| t.offset < at) {
            return Err(invalid(format!(
                "is damaged: tensors {} and {} share bytes",
                quoted(before),
                quoted(&t.name)
            )));
        }
        if t.offset > at {
            return Err(invalid(format!(
                "is damaged: {} bytes before tensor {} belong to none",
                t.offset - at,
                quoted(&t.name)
            )));
        }
        let end =
            t.offset.checked_add(t.bytes).filter(|end| *end <= file_len).ok_or_else(|| {
                invalid(format!(
                    "ends before tensor {} does: the upload was cut off, send it again",
                    quoted(&t.name)
                ))
            })?;
        at = end;
        before = Some(t.name.as_str());
    }
    if before.is_none() {
        return Err(invalid("holds no tensors"));
    }
    if at < file_len {
        return Err(invalid(format!(
            "has {} bytes after its last tensor, where the format allows none: save the adapter again",
            file_len - at
        )));
    }
    Ok(())
}

fn invalid(what: impl Into<String>) -> AdapterError {
    AdapterError::Safetensors(what.into())
}
