//! Where the border between KV blocks and adapters goes, for a device that keeps both in one memory.
//! Neither side takes what the other needs, and each keeps its least. So that the border does not move
//! to and fro, adapters borrow only what is left when all that may run next has its blocks and some
//! more, and blocks come back in numbers.

use super::Scheduler;
use crate::adapters::residency::BlocksLacking;
use crate::kv::BlockPool;

/// The part of all blocks that comes back at once, and that adapters leave beside what is needed.
const PART: u32 = 128;

fn some(kv: &BlockPool) -> u32 {
    (kv.most_blocks() / PART).max(1)
}

impl Scheduler {
    /// Blocks that adapters may borrow.
    pub(super) fn borrowable_blocks(&self, kv: &BlockPool) -> u32 {
        if kv.dispensable() == 0 {
            return 0;
        }
        let waiting = self.sequences.values().filter(|s| s.table.blocks().is_empty());
        let needs = waiting.map(|s| u64::from(kv.blocks_for(s.tokens.len())));
        let (count, sum) = needs.fold((0, 0), |(count, sum), blocks| (count + 1, sum + blocks));
        // More of them will not run at once; each is taken to need as much as the others.
        let places = self.config.max_num_seqs.saturating_sub(self.running.len()) as u64;
        let to_start = match count {
            0 => 0,
            count => (sum * places.min(count)).div_ceil(count),
        };
        let to_start = u32::try_from(to_start).unwrap_or(u32::MAX);
        // The one that found too few is among them.
        let needed = to_start.saturating_add(self.growth()).max(self.needed_blocks(kv));
        let left = kv.available().saturating_sub(needed.saturating_add(some(kv)));
        left.min(kv.dispensable())
    }

    /// What blocks lack for the next step.
    pub(super) fn lacking_blocks(&self, kv: &BlockPool) -> BlocksLacking {
        let needed = self.needed_blocks(kv);
        let given_up = kv.most_blocks() - kv.num_blocks();
        let lacking = |has: u32| match needed.saturating_sub(has) {
            0 => 0,
            few => few.max(some(kv)).min(given_up),
        };
        BlocksLacking { unused: lacking(kv.unused()), available: lacking(kv.available()) }
    }

    /// What runs, and the sequence that found too few, need at most.
    fn needed_blocks(&self, kv: &BlockPool) -> u32 {
        let blocked = self.blocked.and_then(|id| self.get(id));
        blocked.map_or(0, |s| kv.blocks_for(s.tokens.len())).saturating_add(self.growth())
    }

    /// A block for each that runs.
    fn growth(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }
}
