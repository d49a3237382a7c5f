//! The packed adapter, layout 1: one contiguous file that a node maps or reads in one piece.
//!
//! ```text
//! "LKADAPT1" | header length u32 LE | header JSON | zeros to 4096 | tensors, each at a multiple of 64
//! ```
//! Modules stand in layer order, inside a layer in the order of [`Linear::ALL`], and the A tensors
//! of projections that read the same input (q,k,v and gate,up) directly after one another before
//! their B tensors. Tensors keep the dtype in which they were uploaded, so packing loses nothing;
//! scale and rank are resolved here once (alpha, rsLoRA and patterns are PEFT's, not a node's).

use crate::base_model::{BaseModelSpec, Linear};
use crate::digest::{AdapterDigest, WeightsDigest};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

pub const MAGIC: &[u8; 8] = b"LKADAPT1";
pub const LAYOUT_VERSION: u32 = 1;
/// Tensors start at multiples of this, in bytes.
pub const TENSOR_ALIGN: u64 = 64;
/// The data starts at a multiple of this, in bytes.
pub const DATA_ALIGN: u64 = 4096;
/// Largest header accepted, in bytes.
pub const MAX_HEADER_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

impl Dtype {
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// The values of whole little-endian elements.
    pub fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        let halves = || bytes.as_chunks().0.iter();
        match self {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        }
    }
}

/// A tensor's place, in bytes from the start of the file. Row-major, little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRef {
    pub dtype: Dtype,
    pub offset: u64,
    pub bytes: u64,
}

/// One targeted linear layer: `y += scale * B (A x)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleEntry {
    pub layer: u32,
    pub linear: Linear,
    pub rank: u32,
    pub in_features: u32,
    pub out_features: u32,
    pub scale: f32,
    /// `rank x in_features`
    pub a: TensorRef,
    /// `out_features x rank`
    pub b: TensorRef,
    /// DoRA: `out_features`. Row i of `W + scale * B A` is multiplied by `magnitude[i] / norm(row i)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub magnitude: Option<TensorRef>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArtifactHeader {
    pub layout_version: u32,
    pub adapter_digest: AdapterDigest,
    pub base_weights_digest: WeightsDigest,
    pub modules: Vec<ModuleEntry>,
}

/// Why a file is not a packed adapter of this layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    #[error(
        "not a packed adapter: the file does not start with {}",
        String::from_utf8_lossy(MAGIC)
    )]
    Magic,
    #[error("the packed adapter's header is {0} bytes, more than allowed or than the file holds")]
    HeaderLength(u64),
    #[error("the packed adapter's header does not read: {0}")]
    Header(String),
    #[error("the packed adapter has layout {0}, this build reads {LAYOUT_VERSION}")]
    Layout(u32),
    #[error(
        "layer {layer} {linear}: the tensor does not lie inside the file or has the wrong size"
    )]
    Tensor { layer: u32, linear: &'static str },
    #[error("the packed adapter was made for other base weights than this node's")]
    OtherBase,
    #[error("layer {layer} {linear}: the base model has no such module, or one of another shape")]
    Module { layer: u32, linear: &'static str },
}

impl ArtifactHeader {
    /// Bytes before the data, given the serialized header.
    pub fn data_start(header_json_len: usize) -> u64 {
        (MAGIC.len() as u64 + 4 + header_json_len as u64).next_multiple_of(DATA_ALIGN)
    }

    /// Magic, length, header and padding: everything before the data.
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("a header is plain data");
        let mut out = Vec::with_capacity(Self::data_start(json.len()) as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(json.len() as u32).to_le_bytes());
        out.extend_from_slice(&json);
        out.resize(Self::data_start(json.len()) as usize, 0);
        out
    }

    /// Reads the header from the start of a file of `file_len` bytes; `prefix` must hold it whole.
    /// Every tensor has been checked to lie inside the file and to have its shape's size.
    pub fn parse(prefix: &[u8], file_len: u64) -> Result<Self, ArtifactError> {
        let rest = prefix.strip_prefix(MAGIC).ok_or(ArtifactError::Magic)?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(ArtifactError::HeaderLength(0))?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > MAX_HEADER_BYTES || len > rest.len() {
            return Err(ArtifactError::HeaderLength(len as u64));
        }
        let header: Self = serde_json::from_slice(&rest[..len])
            .map_err(|e| ArtifactError::Header(e.to_string()))?;
        if header.layout_version != LAYOUT_VERSION {
            return Err(ArtifactError::Layout(header.layout_version));
        }
        let start = Self::data_start(len);
        for m in &header.modules {
            let (r, i, o) = (m.rank.into(), m.in_features.into(), m.out_features.into());
            let tensors = [(Some(m.a), r, i), (Some(m.b), o, r), (m.magnitude, o, 1u64)];
            let inside = tensors.into_iter().all(|(tensor, rows, cols)| {
                tensor.is_none_or(|t| t.fits(rows, cols, start, file_len))
            });
            if !inside || m.rank == 0 {
                return Err(ArtifactError::Tensor { layer: m.layer, linear: m.linear.as_str() });
            }
        }
        Ok(header)
    }

    /// Every module is one of the base model's, at its shape, in order and once.
    pub fn check_fits(&self, base: &BaseModelSpec) -> Result<(), ArtifactError> {
        if self.base_weights_digest != base.weights_digest {
            return Err(ArtifactError::OtherBase);
        }
        let mut before = None;
        for m in &self.modules {
            let shape = (m.out_features as usize, m.in_features as usize);
            let place = Some((m.layer, m.linear.index()));
            if m.layer >= base.num_layers || shape != base.shape(m.linear) || before >= place {
                return Err(ArtifactError::Module { layer: m.layer, linear: m.linear.as_str() });
            }
            before = place;
        }
        Ok(())
    }

    pub fn max_rank(&self) -> u32 {
        self.modules.iter().map(|m| m.rank).max().unwrap_or(0)
    }

    /// Distinct targets, in the order of [`Linear::ALL`].
    pub fn targets(&self) -> Vec<Linear> {
        Linear::ALL.into_iter().filter(|l| self.modules.iter().any(|m| m.linear == *l)).collect()
    }

    /// Number of parameters, magnitudes included.
    pub fn parameters(&self) -> u64 {
        self.modules
            .iter()
            .map(|m| {
                let (r, i, o) =
                    (u64::from(m.rank), u64::from(m.in_features), u64::from(m.out_features));
                r * (i + o) + if m.magnitude.is_some() { o } else { 0 }
            })
            .sum()
    }
}

impl TensorRef {
    /// The tensor's bytes in the whole file; None when it does not lie inside.
    pub fn bytes_in(self, file: &[u8]) -> Option<&[u8]> {
        let start = usize::try_from(self.offset).ok()?;
        file.get(start..start.checked_add(usize::try_from(self.bytes).ok()?)?)
    }

    fn fits(&self, rows: u64, cols: u64, start: u64, file_len: u64) -> bool {
        let size = rows.checked_mul(cols).and_then(|n| n.checked_mul(self.dtype.size() as u64));
        let end = self.offset.checked_add(self.bytes);
        size == Some(self.bytes)
            && self.offset >= start
            && self.offset.is_multiple_of(TENSOR_ALIGN)
            && end.is_some_and(|end| end <= file_len)
    }
}
