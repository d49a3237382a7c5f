//! What a cached block holds, as a key. A chain of blocks is a path in a trie, and a key compares
//! the tokens themselves: two prefixes are never taken for one another, whatever a customer sends,
//! and the table's hasher is keyed at random, so collisions cannot be prepared either.

use lorikeet_contract::{AdapterDigest, TenantId};

/// Whose tokens, seen through which weights: prefixes are never shared across scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixScope {
    pub tenant: TenantId,
    /// None: the base model.
    pub adapter: Option<AdapterDigest>,
}

/// Names a path from a scope's start to the end of one block; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PrefixId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    Start(PrefixScope),
    Prefix(PrefixId),
}

/// One block's tokens after their parent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PrefixKey {
    pub parent: Parent,
    pub tokens: Vec<u32>,
}
