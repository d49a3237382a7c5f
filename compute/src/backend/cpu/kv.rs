//! Keys and values of every layer, in blocks of [`BLOCK_TOKENS`] tokens.
//!
//! In bf16 when serving: at 16 sequences of 128 tokens an f32 cache would add a third to the bytes
//! that a step reads. Each head's share of a block is two packed matrices, so that attention runs
//! on the same kernel as the linears: the keys with tokens as outputs (scores = q . K), the values
//! with tokens as inputs (context = weights . V).

use super::element::Element;
use super::kernel::PANEL;
use super::pack::{Panel, index_in_panel};
use super::shared::Shared;

/// Tokens of a block: one panel of keys.
pub const BLOCK_TOKENS: usize = PANEL;

pub struct KvCache<T> {
    data: Shared<T>,
    num_blocks: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// One head's share of a block of a layer.
#[derive(Clone, Copy)]
pub struct HeadBlock {
    pub layer: usize,
    pub block: u32,
    pub head: usize,
}

impl<T: Element> KvCache<T> {
    pub fn new(layers: usize, num_blocks: usize, kv_heads: usize, head_dim: usize) -> Self {
        let size = layers * num_blocks * kv_heads * 2 * BLOCK_TOKENS * head_dim;
        Self { data: Shared::zeroed(size), num_blocks, kv_heads, head_dim }
    }

    fn half(&self) -> usize {
        BLOCK_TOKENS * self.head_dim
    }

    fn start(&self, at: HeadBlock) -> usize {
        let block = at.layer * self.num_blocks + at.block as usize;
        (block * self.kv_heads + at.head) * 2 * self.half()
    }

    /// Stores one token's key and value. `last`: no later token of the block has been written.
    ///
    /// # Safety
    /// Until the next barrier no other thread reads the block or writes this token, or the one
    /// after it if `last`.
    pub unsafe fn write(
        &self,
        at: HeadBlock,
        token: usize,
        key: &[f32],
        value: &[f32],
        last: bool,
    ) {
        let keys = self.start(at);
        let values = keys + self.half();
        // The kernel reads values in groups of tokens: what an earlier sequence left in this
        // one's group, perhaps NaN, must not reach it through a weight of zero.
        let clear = if last { token + 1..(token + 1).next_multiple_of(T::GROUP) } else { 0..0 };
        for (d, (&key, &value)) in key.iter().zip(value).enumerate() {
            // SAFETY: these elements belong to this token (or the cleared ones), see above.
            unsafe {
                self.data.set(keys + index_in_panel::<T>(BLOCK_TOKENS, token, d), T::from_f32(key));
                self.data.set(values + self.value_index(token, d), T::from_f32(value));
                for token in clear.clone() {
                    self.data.set(values + self.value_index(token, d), T::from_f32(0.0));
                }
            }
        }
    }

    fn value_index(&self, token: usize, d: usize) -> usize {
        let panel = d / PANEL;
        let width = (self.head_dim - panel * PANEL).min(PANEL);
        panel * PANEL * BLOCK_TOKENS + index_in_panel::<T>(width, d % PANEL, token)
    }

    /// Keys of a block: tokens are outputs.
    ///
    /// # Safety
    /// Until the borrow ends, no thread writes the block.
    pub unsafe fn keys(&self, at: HeadBlock) -> Panel<'_, T> {
        let start = self.start(at);
        // SAFETY: forwarded from the caller.
        let data = unsafe { self.data.read(start..start + self.half()) };
        Panel { data, width: BLOCK_TOKENS }
    }

    /// Panels of the values of a block's first tokens, in whole groups: tokens are inputs.
    ///
    /// # Safety
    /// Until the borrow ends, no thread writes the block.
    pub unsafe fn values(&self, at: HeadBlock, panel: usize, tokens: usize) -> Panel<'_, T> {
        let width = (self.head_dim - panel * PANEL).min(PANEL);
        let start = self.start(at) + self.half() + panel * PANEL * BLOCK_TOKENS;
        let len = tokens.next_multiple_of(T::GROUP) * width;
        // SAFETY: forwarded from the caller.
        let data = unsafe { self.data.read(start..start + len) };
        Panel { data, width }
    }
}
