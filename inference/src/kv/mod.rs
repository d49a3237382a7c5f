//! KV cache blocks: who owns which, and which prefix they hold.

/// A physical KV block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);
