//! The base model as both planes know it: enough to decide whether an adapter fits.

use crate::digest::{ParseDigestError, WeightsDigest};
use crate::link;
use serde::{Deserialize, Serialize};

/// The seven linear layers of a decoder block that an adapter may target, in the order in which
/// they are stored: those that read the same input stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Linear {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl Linear {
    pub const ALL: [Linear; 7] = [
        Linear::QProj,
        Linear::KProj,
        Linear::VProj,
        Linear::OProj,
        Linear::GateProj,
        Linear::UpProj,
        Linear::DownProj,
    ];

    /// Hugging Face's last path part, `q_proj` and so on.
    pub fn as_str(self) -> &'static str {
        match self {
            Linear::QProj => "q_proj",
            Linear::KProj => "k_proj",
            Linear::VProj => "v_proj",
            Linear::OProj => "o_proj",
            Linear::GateProj => "gate_proj",
            Linear::UpProj => "up_proj",
            Linear::DownProj => "down_proj",
        }
    }

    /// Hugging Face's path inside a layer, `self_attn.q_proj` and so on.
    pub fn path(self) -> &'static str {
        match self {
            Linear::QProj => "self_attn.q_proj",
            Linear::KProj => "self_attn.k_proj",
            Linear::VProj => "self_attn.v_proj",
            Linear::OProj => "self_attn.o_proj",
            Linear::GateProj => "mlp.gate_proj",
            Linear::UpProj => "mlp.up_proj",
            Linear::DownProj => "mlp.down_proj",
        }
    }

    pub fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|l| l.path() == path)
    }

    /// 0..7, the place in [`Linear::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Identity and shapes of a base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModelSpec {
    /// Public name, also the `model` that calls it without an adapter.
    pub id: String,
    pub weights_digest: WeightsDigest,
    pub architecture: String,
    pub hidden_size: u32,
    pub intermediate_size: u32,
    pub num_layers: u32,
    pub num_heads: u32,
    pub num_kv_heads: u32,
    pub head_dim: u32,
    pub vocab_size: u32,
    pub context_length: u32,
}

impl BaseModelSpec {
    /// `(out, in)` of a linear layer's weight.
    pub fn shape(&self, linear: Linear) -> (usize, usize) {
        let hidden = self.hidden_size as usize;
        let inter = self.intermediate_size as usize;
        let q = (self.num_heads * self.head_dim) as usize;
        let kv = (self.num_kv_heads * self.head_dim) as usize;
        match linear {
            Linear::QProj => (q, hidden),
            Linear::KProj | Linear::VProj => (kv, hidden),
            Linear::OProj => (hidden, q),
            Linear::GateProj | Linear::UpProj => (inter, hidden),
            Linear::DownProj => (hidden, inter),
        }
    }

    pub fn to_proto(&self) -> link::BaseModel {
        link::BaseModel {
            id: self.id.clone(),
            weights_digest: self.weights_digest.0.to_vec(),
            architecture: self.architecture.clone(),
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            vocab_size: self.vocab_size,
            context_length: self.context_length,
        }
    }

    pub fn from_proto(p: &link::BaseModel) -> Result<Self, ParseDigestError> {
        Ok(Self {
            id: p.id.clone(),
            weights_digest: WeightsDigest::from_slice(&p.weights_digest)?,
            architecture: p.architecture.clone(),
            hidden_size: p.hidden_size,
            intermediate_size: p.intermediate_size,
            num_layers: p.num_layers,
            num_heads: p.num_heads,
            num_kv_heads: p.num_kv_heads,
            head_dim: p.head_dim,
            vocab_size: p.vocab_size,
            context_length: p.context_length,
        })
    }
}
