//! KV cache blocks: who owns which, and which prefix they hold. Std and contract only.
//!
//! ```text
//!            grow                  index                    release
//!   free ───────────> held by one ───────> held, and known ─────────> cached (least recently
//!    ^                     │                by its prefix              released is reused first)
//!    │       release       │                  ^   │                        │          │
//!    ├─────────────────────┘                  │   └──── admit (shared) ────┘          │
//!    │                                        └──────── admit ────────────────────────┤
//!    └───────────────────────────────── evicted by grow ──────────────────────────────┘
//! ```
//!
//! A block is written by the one sequence that grew into it, until it is full; it is indexed when
//! the step that filled it has been collected, and never written again while it is. So sharing
//! needs no copies. A block released while a submitted step still writes it may be handed out at
//! once: a backend executes steps in the order of their submission. So may the place of a block that
//! has moved: a move is made between the steps.

mod lru;
mod pool;
mod prefix;

pub use lorikeet_compute::backend::BlockId;
pub use pool::{BlockPool, BlockTable};
pub use prefix::PrefixScope;
