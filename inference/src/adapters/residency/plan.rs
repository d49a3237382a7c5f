//! What to do next, from the device down: room is given to whoever has waited longest.

use super::entry::{Entry, OnDevice};
use super::{AdapterAction, Claim, Claims, Residency};
use crate::adapters::AdapterKey;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::time::Instant;

/// Sequences of one adapter that count: however many wait for it, one that waits alone for another of
/// the tenant's adapters comes first once that has waited eight times as long.
const LOUDEST: u32 = 8;

impl Residency {
    /// Decides the next moves and records them as under way; each action must be performed.
    /// To be called before the step's leases are taken.
    /// `claims`: of every adapter that sequences need, while [`Residency::is_contended`]. `borrowable`:
    /// KV blocks that adapters may have.
    pub fn plan(
        &mut self,
        now: Instant,
        claims: &Claims,
        borrowable: u32,
        actions: &mut Vec<AdapterAction>,
    ) {
        let before = actions.len();
        self.plans += 1;
        self.borrowable = borrowable;
        self.settle_pins(now);
        self.drop_forgotten(now, actions);
        self.evict_leaving(now, actions);
        self.sweep(now);
        let entries = &self.entries;
        self.wanted.retain(|key| entries.get(key).is_some_and(Entry::waits_for_device));
        // Stable: of one tenant's that press alike, whoever came first stays first.
        self.wanted.make_contiguous().sort_by_key(|key| {
            let claim = Claim::of(key, claims);
            let waits = now.saturating_duration_since(entries[key].waits_since);
            let pressure = waits.as_nanos() * u128::from(claim.runnable.min(LOUDEST));
            (!claim.can_run(), claim.served, !claim.is_new, Reverse(pressure))
        });
        self.upload(now, claims, actions);
        self.read_files(now, actions);
        self.fetch(now, actions);
        self.cancel_fetches(now, actions);
        self.changes += (actions.len() - before) as u64;
    }

    pub(super) fn entry(&self, key: &AdapterKey) -> &Entry {
        self.entries.get(key).expect("queues and tiers name entries that exist")
    }

    pub(super) fn entry_mut(&mut self, key: &AdapterKey) -> &mut Entry {
        self.entries.get_mut(key).expect("queues and tiers name entries that exist")
    }

    /// The wanted that come after a turn, last first.
    pub(super) fn behind(&self, turn: usize) -> impl Iterator<Item = AdapterKey> {
        self.wanted.range(turn + 1..).rev().copied()
    }

    /// Moves forgotten adapters that nobody needs out of every tier, as far as nothing is under
    /// way with them.
    fn drop_forgotten(&mut self, now: Instant, actions: &mut Vec<AdapterAction>) {
        if self.forgotten.is_empty() {
            return;
        }
        for key in self.forgotten.clone() {
            let entry = self.entry_mut(&key);
            if entry.is_demanded() {
                continue;
            }
            if let OnDevice::Present { leaving, .. } = &mut entry.device {
                *leaving = true;
            }
            self.drop_host_copy(key);
            self.drop_file(key, actions);
        }
        self.evict_leaving(now, actions);
        let entries = &mut self.entries;
        self.forgotten.retain(|key| {
            let gone = entries.get(key).is_none_or(|e| !e.is_demanded() && e.is_absent());
            if gone {
                entries.remove(key);
            }
            !gone
        });
    }

    /// Lets go of adapters that are nowhere and whose failures no longer matter, and of what was
    /// known of tenants that have nothing here.
    fn sweep(&mut self, now: Instant) {
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        self.next_sweep = Some(now + self.config.retry_max);
        self.entries.retain(|_, entry| {
            let failed = entry.failure.as_ref().is_some_and(|f| now < f.retry_at);
            let needed = entry.is_demanded() || entry.forgotten || entry.pin.is_some();
            !entry.is_absent() || needed || failed
        });
        let tenants: HashSet<_> = self.entries.keys().map(|key| key.tenant).collect();
        self.shares.retain(|tenant, _| tenants.contains(tenant));
        self.changes += 1;
    }
}
