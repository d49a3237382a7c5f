//! The device's memory beyond the adapters' least is shared with the KV blocks, in whole blocks. An
//! adapter that lacks room takes blocks that nobody needs before another adapter has to leave; what
//! adapters do not use goes back when there are few blocks, and what nobody needs of them when there
//! are none.

use super::entry::{Entry, InHost, OnDevice};
use super::tier::Shortage;
use super::{AdapterAction, Residency};
use std::time::Instant;

/// What adapters have of the device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// At the start, and the fewest that there will be. A larger adapter is not served.
    pub bytes: u64,
    /// Of a KV block; 0: nothing is shared.
    pub block_bytes: u64,
}

/// What blocks lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlocksLacking {
    /// Of those that hold nothing of use: adapters give back what they do not use.
    pub unused: u32,
    /// Of all that can be had: adapters that nobody needs leave.
    pub available: u32,
}

impl Residency {
    /// Takes blocks for an adapter that lacks nothing but bytes, if there are enough.
    pub(super) fn borrow(&mut self, lacks: &Shortage, actions: &mut Vec<AdapterAction>) -> bool {
        let block_bytes = self.memory.block_bytes;
        if block_bytes == 0 || !lacks.is_of_bytes_alone() {
            return false;
        }
        let blocks = lacks.bytes.div_ceil(block_bytes);
        if blocks > self.borrowable.into() {
            return false;
        }
        self.borrowable -= blocks as u32;
        self.device.capacity += blocks * block_bytes;
        actions.push(AdapterAction::Borrow { blocks: blocks as u32 });
        true
    }

    /// Gives blocks what they lack, as far as adapters can do without it. What adapters leave that a
    /// step under way still reads is spare with a later call.
    pub fn yield_blocks(
        &mut self,
        lacking: BlocksLacking,
        now: Instant,
        actions: &mut Vec<AdapterAction>,
    ) {
        if self.memory.block_bytes == 0 || lacking == BlocksLacking::default() {
            return;
        }
        let before = actions.len();
        self.dismiss(lacking.available, now, actions);
        let blocks = self.spare_blocks(self.device.used).min(lacking.unused);
        if blocks > 0 {
            actions.push(AdapterAction::Return { blocks });
        }
        self.changes += (actions.len() - before) as u64;
    }

    /// A `Return` has been performed.
    pub fn returned(&mut self, blocks: u32) {
        self.device.capacity -= u64::from(blocks) * self.memory.block_bytes;
        self.changes += 1;
    }

    /// Blocks' room that would be spare with so many bytes in use: neither in use, nor waited for by
    /// adapters in host memory, nor of the adapters' least.
    fn spare_blocks(&self, used: u64) -> u32 {
        let waiting = self.wanted.iter().map(|key| match &self.entry(key).host {
            InHost::Present { device_bytes, .. } => *device_bytes,
            _ => 0,
        });
        let kept = (used + waiting.sum::<u64>()).max(self.memory.bytes);
        let spare = self.device.capacity.saturating_sub(kept) / self.memory.block_bytes;
        u32::try_from(spare).unwrap_or(u32::MAX)
    }

    /// Adapters that nobody needs leave, the most dispensable first, until so many blocks' room is spare.
    fn dismiss(&mut self, blocks: u32, now: Instant, actions: &mut Vec<AdapterAction>) {
        if self.spare_blocks(self.device.used) >= blocks {
            return;
        }
        let leaving = |entry: &Entry| match entry.device {
            OnDevice::Present { leaving: true, bytes, .. } => bytes,
            _ => 0,
        };
        let members = self.device.members.iter();
        let mut used = self.device.used - members.map(|key| leaving(self.entry(key))).sum::<u64>();
        let idle = self.by_dispensability(&self.device.members, now, |entry| match entry.device {
            OnDevice::Present { leaving: false, bytes, .. } if !entry.is_wanted() => Some(bytes),
            _ => None,
        });
        for (key, bytes) in idle {
            if self.spare_blocks(used) >= blocks || used <= self.memory.bytes {
                break;
            }
            if let OnDevice::Present { leaving, .. } = &mut self.entry_mut(&key).device {
                *leaving = true;
            }
            used -= bytes;
        }
        self.evict_leaving(now, actions);
    }
}
