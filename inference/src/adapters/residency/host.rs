//! Disk to host memory.

use super::entry::{Entry, InHost, OnDisk};
use super::tier::{Room, dispensability};
use super::{AdapterAction, LoadAction, Residency};
use crate::adapters::{AdapterKey, CachedFile};
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

impl Residency {
    pub(super) fn read_files(&mut self, now: Instant, actions: &mut Vec<AdapterAction>) {
        for at in 0..self.wanted.len() {
            if self.reads == self.config.max_reads {
                return;
            }
            match self.read_file(at, now, actions) {
                Room::Now | Room::OverQuota => {}
                Room::Coming | Room::Full => return,
            }
        }
    }

    /// `turn`: its place among the wanted.
    fn read_file(&mut self, turn: usize, now: Instant, actions: &mut Vec<AdapterAction>) -> Room {
        let key = self.wanted[turn];
        let entry = self.entry(&key);
        let (OnDisk::Present(file), InHost::Absent, Some(manifest)) =
            (&entry.disk, &entry.host, &entry.manifest)
        else {
            return Room::Now;
        };
        if CachedFile::of(manifest) != *file {
            // Packed differently than what is wanted now: the fetch that follows replaces it.
            self.drop_file(key, actions);
            return Room::Now;
        }
        let manifest = Arc::clone(manifest);
        if let Some(reason) = self.too_large_for_host(key, manifest.bytes) {
            self.fail(key, reason, now);
            return Room::Now;
        }
        let room = self.make_host_room(key, manifest.bytes, turn, now);
        if room != Room::Now {
            return room;
        }
        self.host.reserve(key, manifest.bytes);
        self.reads += 1;
        self.entry_mut(&key).host = InHost::Reading { bytes: manifest.bytes };
        actions.push(AdapterAction::Load(LoadAction::Read(manifest)));
        Room::Now
    }

    pub(super) fn too_large_for_host(&self, key: AdapterKey, bytes: u64) -> Option<String> {
        let room = self.host.capacity;
        if bytes > room {
            return Some(format!("it needs {bytes} bytes in host memory, this node has {room}"));
        }
        let quota = self.share(key.tenant).host_bytes.filter(|quota| bytes > *quota)?;
        Some(format!("it needs {bytes} bytes in host memory, its tenant may have {quota}"))
    }

    fn make_host_room(
        &mut self,
        wanted: AdapterKey,
        bytes: u64,
        turn: usize,
        now: Instant,
    ) -> Room {
        let quota = self.share(wanted.tenant).host_bytes;
        let lacks = self.host.shortage(wanted.tenant, bytes, quota);
        if lacks.is_none() {
            return Room::Now;
        }
        // Copies that nobody waits for; then those of adapters behind; pins come last.
        let copy = |key: AdapterKey| Some((key, self.entry(&key).droppable_host_bytes()?));
        let mut unneeded = self.by_dispensability(&self.host.members, now, |entry| {
            (!entry.waits_for_device()).then(|| entry.droppable_host_bytes())?
        });
        unneeded.extend(self.behind(turn).filter_map(copy));
        let (pinned, mut victims): (Vec<_>, Vec<_>) =
            unneeded.into_iter().partition(|(key, _)| self.entry(key).is_held());
        if self.displaces_pins_in_host(wanted, bytes) {
            victims.extend(pinned);
        }
        let dropped = match lacks.cover(&victims) {
            Ok(dropped) => dropped,
            Err(room) => return room,
        };
        for key in dropped {
            self.drop_host_copy(key);
        }
        Room::Now
    }

    pub(super) fn drop_host_copy(&mut self, key: AdapterKey) {
        let entry = self.entry_mut(&key);
        if let Some(bytes) = entry.droppable_host_bytes() {
            entry.host = InHost::Absent;
            self.host.release(key, bytes);
            self.changes += 1;
        }
    }

    /// Members with what each would free, the most dispensable first.
    pub(super) fn by_dispensability(
        &self,
        members: &[AdapterKey],
        now: Instant,
        freed: impl Fn(&Entry) -> Option<u64>,
    ) -> Vec<(AdapterKey, u64)> {
        let mut ranked: Vec<_> = members
            .iter()
            .filter_map(|key| {
                let entry = self.entry(key);
                let bytes = freed(entry)?;
                let idle = now.saturating_duration_since(entry.last_used);
                let rank = dispensability(idle, bytes, self.share(key.tenant).weight);
                Some((Reverse(rank), entry.last_used, *key, bytes))
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, _, key, bytes)| (key, bytes)).collect()
    }
}
