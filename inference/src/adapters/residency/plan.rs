//! What to do next, from the device down: room is given to whoever has waited longest.

use super::entry::{Entry, InHost, OnDevice, OnDisk};
use super::{AdapterAction, LoadAction, Residency};
use crate::adapters::{AdapterKey, CachedFile};
use std::sync::Arc;
use std::time::Instant;

impl Residency {
    /// Decides the next moves and records them as under way; each action must be performed.
    /// To be called before the step's leases are taken.
    pub fn plan(&mut self, now: Instant, actions: &mut Vec<AdapterAction>) {
        let before = actions.len();
        self.drop_forgotten(now, actions);
        self.evict_leaving(now, actions);
        self.sweep(now);
        let entries = &self.entries;
        self.wanted.retain(|key| entries.get(key).is_some_and(Entry::waits_for_device));
        self.hints.retain(|key| entries.get(key).is_some_and(is_hint_open));
        self.upload(now, actions);
        self.read_files(actions);
        self.fetch(actions);
        self.changes += (actions.len() - before) as u64;
    }

    fn entry(&self, key: &AdapterKey) -> &Entry {
        self.entries.get(key).expect("queues and tiers name entries that exist")
    }

    fn entry_mut(&mut self, key: &AdapterKey) -> &mut Entry {
        self.entries.get_mut(key).expect("queues and tiers name entries that exist")
    }

    // ---- device ----

    fn upload(&mut self, now: Instant, actions: &mut Vec<AdapterAction>) {
        for at in 0..self.wanted.len() {
            if self.uploads == self.config.max_uploads {
                return;
            }
            let key = self.wanted[at];
            let entry = self.entry(&key);
            let (InHost::Present { adapter, device_bytes, .. }, OnDevice::Absent) =
                (&entry.host, &entry.device)
            else {
                // Still on its way here; those behind may go first, and give way when it comes.
                continue;
            };
            let (adapter, bytes) = (Arc::clone(adapter), *device_bytes);
            if !self.make_device_room(bytes, now, actions) {
                return;
            }
            let Some(slot) = self.slots.take(key) else { return };
            self.device.reserve(key, bytes);
            self.uploads += 1;
            self.entry_mut(&key).device = OnDevice::Uploading { bytes };
            actions.push(AdapterAction::Upload { slot, adapter });
        }
    }

    /// True when there is room now. Otherwise adapters may have been told to leave, so that there
    /// is when the steps that read them have been collected.
    fn make_device_room(
        &mut self,
        bytes: u64,
        now: Instant,
        actions: &mut Vec<AdapterAction>,
    ) -> bool {
        let mut room = self.device.free();
        let mut slots = self.slots.free();
        let enough = |room: u64, slots: usize| room >= bytes && slots > 0;
        if enough(room, slots) {
            return true;
        }
        let mut victims = Vec::new();
        for key in &self.device.members {
            let entry = self.entry(key);
            match &entry.device {
                OnDevice::Present { leaving: true, bytes, .. } => {
                    room += bytes;
                    slots += 1;
                }
                OnDevice::Present { quantum_ends, .. } if entry.is_demanded() => {
                    if *quantum_ends <= now {
                        victims.push((true, *quantum_ends, *key));
                    }
                }
                OnDevice::Present { .. } => victims.push((false, entry.last_used, *key)),
                OnDevice::Absent | OnDevice::Uploading { .. } => {}
            }
        }
        // What nobody needs goes first, least recently used; then whoever's turn ended first.
        victims.sort_unstable();
        let mut chosen = 0;
        while !enough(room, slots) && chosen < victims.len() {
            room += self.entry(&victims[chosen].2).device_bytes();
            slots += 1;
            chosen += 1;
        }
        if !enough(room, slots) {
            return false;
        }
        for (_, _, key) in &victims[..chosen] {
            if let OnDevice::Present { leaving, .. } = &mut self.entry_mut(key).device {
                *leaving = true;
            }
        }
        self.evict_leaving(now, actions);
        enough(self.device.free(), self.slots.free())
    }

    fn evict_leaving(&mut self, now: Instant, actions: &mut Vec<AdapterAction>) {
        let mut at = 0;
        while let Some(key) = self.device.members.get(at).copied() {
            let entry = self.entry_mut(&key);
            let (slot, bytes) = match &entry.device {
                OnDevice::Present { lease, bytes, leaving: true, .. } if !lease.is_shared() => {
                    (lease.slot(), *bytes)
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            entry.device = OnDevice::Absent;
            if entry.is_demanded() {
                entry.last_used = now;
                self.wanted.push_back(key);
            }
            self.slots.release(slot);
            self.device.release(key, bytes);
            actions.push(AdapterAction::Evict(slot));
        }
    }

    // ---- host ----

    fn read_files(&mut self, actions: &mut Vec<AdapterAction>) {
        for at in 0..self.wanted.len() {
            let key = self.wanted[at];
            if self.reads == self.config.max_reads || !self.read_file(key, Some(at), actions) {
                return;
            }
        }
        for at in (0..self.hints.len()).rev() {
            if self.reads < self.config.max_reads && !self.read_file(self.hints[at], None, actions)
            {
                self.hints.remove(at);
            }
        }
    }

    /// `turn`: its place among the wanted, None for a hint. False when it must wait for room.
    fn read_file(
        &mut self,
        key: AdapterKey,
        turn: Option<usize>,
        actions: &mut Vec<AdapterAction>,
    ) -> bool {
        let entry = self.entry(&key);
        let (OnDisk::Present(file), InHost::Absent, Some(manifest)) =
            (&entry.disk, &entry.host, &entry.manifest)
        else {
            return true;
        };
        if CachedFile::of(manifest) != *file {
            // Packed differently than what is wanted now: the fetch that follows replaces it.
            self.drop_file(key, actions);
            return true;
        }
        let manifest = Arc::clone(manifest);
        if !self.make_host_room(manifest.bytes, turn) {
            return false;
        }
        self.host.reserve(key, manifest.bytes);
        self.reads += 1;
        self.entry_mut(&key).host = InHost::Reading { bytes: manifest.bytes };
        actions.push(AdapterAction::Load(LoadAction::Read(manifest)));
        true
    }

    fn make_host_room(&mut self, bytes: u64, turn: Option<usize>) -> bool {
        if self.host.free() >= bytes {
            return true;
        }
        // Copies that nobody waits for, least recently used first: a hint leaves those of adapters
        // in use alone.
        let mut victims: Vec<_> = self
            .host
            .members
            .iter()
            .map(|key| (key, self.entry(key)))
            .filter(|(_, e)| !e.waits_for_device() && (turn.is_some() || !e.is_demanded()))
            .filter_map(|(key, e)| Some((e.last_used, *key, e.droppable_host_bytes()?)))
            .collect();
        victims.sort_unstable();
        let unneeded = victims.into_iter().map(|(_, key, bytes)| (key, bytes));
        let behind = self.behind(turn);
        let behind = behind.filter_map(|k| Some((k, self.entry(&k).droppable_host_bytes()?)));
        let Some(victims) = enough(unneeded.chain(behind), bytes, self.host.free()) else {
            return false;
        };
        for (key, bytes) in victims {
            self.entry_mut(&key).host = InHost::Absent;
            self.host.release(key, bytes);
            self.changes += 1;
        }
        true
    }

    // ---- disk ----

    fn fetch(&mut self, actions: &mut Vec<AdapterAction>) {
        for at in 0..self.wanted.len() {
            let key = self.wanted[at];
            if self.fetches == self.config.max_fetches
                || self.fetch_one(key, Some(at), actions) != Room::Now
            {
                return;
            }
        }
        for at in (0..self.hints.len()).rev() {
            if self.fetches < self.config.max_fetches
                && self.fetch_one(self.hints[at], None, actions) == Room::None
            {
                self.hints.remove(at);
            }
        }
    }

    fn fetch_one(
        &mut self,
        key: AdapterKey,
        turn: Option<usize>,
        actions: &mut Vec<AdapterAction>,
    ) -> Room {
        let entry = self.entry(&key);
        let (OnDisk::Absent, InHost::Absent, Some(manifest)) =
            (&entry.disk, &entry.host, &entry.manifest)
        else {
            return Room::Now;
        };
        let manifest = Arc::clone(manifest);
        let room = self.make_disk_room(manifest.bytes, turn, actions);
        if room != Room::Now {
            return room;
        }
        let file = CachedFile::of(&manifest);
        self.disk.reserve(key, file.bytes);
        self.fetches += 1;
        self.entry_mut(&key).disk = OnDisk::Fetching(file);
        actions.push(AdapterAction::Load(LoadAction::Fetch(manifest)));
        Room::Now
    }

    fn make_disk_room(
        &mut self,
        bytes: u64,
        turn: Option<usize>,
        actions: &mut Vec<AdapterAction>,
    ) -> Room {
        if self.disk.free() >= bytes {
            return Room::Now;
        }
        let members = || self.disk.members.iter().map(|key| (key, self.entry(key)));
        let leaving: u64 = members()
            .filter(|(_, e)| matches!(e.disk, OnDisk::Dropping(_)))
            .map(|(_, e)| e.disk_bytes())
            .sum();
        // Files that nobody waits for, or whose bytes are in host memory already.
        let mut victims: Vec<_> = members()
            .filter(|(_, e)| !e.waits_for_device() || matches!(e.host, InHost::Present { .. }))
            .filter_map(|(key, e)| Some((e.last_used, *key, e.droppable_file()?.bytes)))
            .collect();
        victims.sort_unstable();
        let unneeded = victims.into_iter().map(|(_, key, bytes)| (key, bytes));
        let behind = self.behind(turn).filter(|k| matches!(self.entry(k).host, InHost::Absent));
        let behind = behind.filter_map(|k| Some((k, self.entry(&k).droppable_file()?.bytes)));
        let free = self.disk.free() + leaving;
        let Some(victims) = enough(unneeded.chain(behind), bytes, free) else { return Room::None };
        for (key, _) in victims {
            self.drop_file(key, actions);
        }
        Room::Coming
    }

    fn drop_file(&mut self, key: AdapterKey, actions: &mut Vec<AdapterAction>) {
        let entry = self.entry_mut(&key);
        if let Some(file) = entry.droppable_file() {
            entry.disk = OnDisk::Dropping(file);
            actions.push(AdapterAction::Load(LoadAction::DropFile(file)));
        }
    }

    // ---- all tiers ----

    /// The wanted that come after a turn, last first; nobody for a hint.
    fn behind(&self, turn: Option<usize>) -> impl Iterator<Item = AdapterKey> {
        let after = turn.map_or(self.wanted.len(), |at| at + 1);
        self.wanted.range(after..).rev().copied()
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
            if let Some(bytes) = entry.droppable_host_bytes() {
                entry.host = InHost::Absent;
                self.host.release(key, bytes);
            }
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

    /// Lets go of adapters that are nowhere and whose failures no longer matter.
    fn sweep(&mut self, now: Instant) {
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        self.next_sweep = Some(now + self.config.retry_max);
        let hints = &self.hints;
        self.entries.retain(|key, entry| {
            let failed = entry.failure.as_ref().is_some_and(|f| now < f.retry_at);
            let idle = entry.is_absent() && !entry.is_demanded() && !entry.forgotten;
            !idle || failed || hints.contains(key)
        });
        self.changes += 1;
    }
}

/// Room on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Now,
    /// Once the files on their way out are gone.
    Coming,
    /// Not until others let go.
    None,
}

fn is_hint_open(entry: &Entry) -> bool {
    let loaded =
        matches!(entry.host, InHost::Present { .. }) || !matches!(entry.device, OnDevice::Absent);
    !loaded && !entry.forgotten && entry.failure.is_none()
}

/// As many candidates, in their order, as it takes to have `bytes`; None when all are too few.
fn enough(
    candidates: impl Iterator<Item = (AdapterKey, u64)>,
    bytes: u64,
    mut free: u64,
) -> Option<Vec<(AdapterKey, u64)>> {
    let mut chosen = Vec::new();
    for (key, gain) in candidates {
        if free >= bytes {
            break;
        }
        free += gain;
        chosen.push((key, gain));
    }
    (free >= bytes).then_some(chosen)
}
