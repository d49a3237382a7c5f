//! What service costs, in one currency: what a token of a prompt costs to compute.
//!
//! A decoded token counts twice, as in Sheng et al.: it is a row of its own that reads its sequence's
//! whole context again. Adapters count by their bytes, measured in tokens of KV cache: what is read
//! in a step besides the base weights is either. With a full batch of 64 rows, each row's part of
//! reading the base weights is about 1,600 tokens of KV (Llama-3.1-8B in bf16: 15 GB / 64 / 131 KB),
//! so that is what a row is taken to cost. An adapter on all linears of that model weighs 40 tokens
//! of KV per rank: at rank 16 it adds 0.4 rows to each step that reads it, however many of its
//! sequences share the read. A copy to the device crosses a link about 60 times slower than the
//! device's memory (55 GB/s against 3.3 TB/s): 24 rows.
//!
//! Tokens found in the prefix cache cost nothing, neither do those computed again after a sequence
//! had to give up its blocks: the first take no computing, the second were the node's own choice.

use lorikeet_compute::backend::HostAdapter;
use lorikeet_contract::BaseModelSpec;
use std::ops::Add;

/// KV tokens read in the time that one row of a full batch takes.
const KV_TOKENS_PER_ROW: u64 = 1600;

/// How much longer a byte takes over the link to the device than from the device's memory.
const LINK_SLOWDOWN: u64 = 60;

/// In thousandths of a prompt token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Cost(pub u64);

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Cost {
    pub fn prompt(tokens: usize) -> Self {
        Self(tokens as u64 * 1000)
    }

    pub fn output(tokens: usize) -> Self {
        Self(tokens as u64 * 2000)
    }
}

/// Prices of what depends on the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prices {
    /// Keys and values of one token, all layers, in 16 bits. At least 1.
    kv_token_bytes: u64,
}

impl Prices {
    pub fn of(base: &BaseModelSpec) -> Self {
        let head_values = u64::from(base.num_kv_heads) * u64::from(base.head_dim);
        let bytes = 2 * 2 * u64::from(base.num_layers) * head_values;
        Self { kv_token_bytes: bytes.max(1) }
    }

    /// Reading an adapter in one step.
    pub(super) fn adapter_read(self, bytes: u64) -> Cost {
        Cost(bytes.saturating_mul(1000) / (self.kv_token_bytes * KV_TOKENS_PER_ROW))
    }

    /// Copying an adapter to the device.
    pub(super) fn swap(self, adapter: &HostAdapter) -> Cost {
        let modules = adapter.header.modules.iter();
        let bytes = modules.map(|m| m.a.bytes + m.b.bytes + m.magnitude.map_or(0, |t| t.bytes));
        Cost(self.adapter_read(bytes.sum()).0 * LINK_SLOWDOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_contract::WeightsDigest;

    #[test]
    fn an_adapter_of_rank_16_on_an_8b_model_costs_what_the_design_says() {
        let llama = BaseModelSpec {
            id: "llama".into(),
            weights_digest: WeightsDigest([0; 32]),
            architecture: "llama".into(),
            hidden_size: 4096,
            intermediate_size: 14336,
            num_layers: 32,
            num_heads: 32,
            num_kv_heads: 8,
            head_dim: 128,
            vocab_size: 128_256,
            context_length: 8192,
        };
        let prices = Prices::of(&llama);
        assert_eq!(prices.kv_token_bytes, 131_072);
        let rank_16 = 16 * 40 * 131_072;
        assert_eq!(prices.adapter_read(rank_16), Cost(400));
    }
}
