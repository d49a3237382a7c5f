//! Object store to disk.

use super::entry::{Entry, InHost, OnDisk};
use super::tier::Room;
use super::{AdapterAction, LoadAction, Residency};
use crate::adapters::{AdapterKey, CachedFile};
use std::sync::Arc;
use std::time::Instant;

impl Residency {
    pub(super) fn fetch(&mut self, now: Instant, actions: &mut Vec<AdapterAction>) {
        for at in 0..self.wanted.len() {
            if self.fetching.len() == self.config.max_fetches {
                return;
            }
            if self.fetch_one(at, now, actions) != Room::Now {
                return;
            }
        }
    }

    /// `turn`: its place among the wanted.
    fn fetch_one(&mut self, turn: usize, now: Instant, actions: &mut Vec<AdapterAction>) -> Room {
        let key = self.wanted[turn];
        let entry = self.entry(&key);
        let (true, Some(manifest)) = (entry.waits_for_fetch(), &entry.manifest) else {
            return Room::Now;
        };
        let manifest = Arc::clone(manifest);
        let room = self.make_disk_room(manifest.bytes, turn, now, actions);
        if room != Room::Now {
            return room;
        }
        let file = CachedFile::of(&manifest);
        self.disk.reserve(key, file.bytes);
        self.fetching.push(key);
        self.entry_mut(&key).disk =
            OnDisk::Fetching { file, since: now, unwanted_since: None, cancelled: false };
        actions.push(AdapterAction::Load(LoadAction::Fetch(manifest)));
        Room::Now
    }

    /// Breaks off fetches that are of no use any more. One that takes too long fails those who wait
    /// for it. One that nobody wants goes on for a while, so that a client that gives up and asks
    /// again gets there; not so when the adapter was deleted, or when it holds up another.
    pub(super) fn cancel_fetches(&mut self, now: Instant, actions: &mut Vec<AdapterAction>) {
        if self.fetching.is_empty() {
            return;
        }
        let others_wait = self.wanted.iter().any(|key| self.entry(key).waits_for_fetch());
        for at in 0..self.fetching.len() {
            let key = self.fetching[at];
            let grace = self.config.abandon_after;
            let deadline = self.config.download_deadline;
            let entry = self.entry_mut(&key);
            let is_wanted = entry.is_wanted() && entry.failure.is_none();
            let forgotten = entry.forgotten;
            let OnDisk::Fetching { since, unwanted_since, cancelled, .. } = &mut entry.disk else {
                continue;
            };
            if *cancelled {
                continue;
            }
            let late = now.saturating_duration_since(*since) >= deadline;
            if is_wanted {
                *unwanted_since = None;
                *cancelled = late;
            } else {
                let unwanted_since = *unwanted_since.get_or_insert(now);
                let given_up = now.saturating_duration_since(unwanted_since) >= grace;
                *cancelled = late || given_up || forgotten || others_wait;
            }
            if !*cancelled {
                continue;
            }
            actions.push(AdapterAction::CancelFetch(key));
            if is_wanted {
                let reason = format!("it did not arrive within {} s", deadline.as_secs_f32());
                self.fail(key, reason, now);
            }
        }
    }

    fn make_disk_room(
        &mut self,
        bytes: u64,
        turn: usize,
        now: Instant,
        actions: &mut Vec<AdapterAction>,
    ) -> Room {
        let mut lacks = self.disk.shortage(self.wanted[turn].tenant, bytes, None);
        if lacks.is_none() {
            return Room::Now;
        }
        for key in &self.disk.members {
            let entry = self.entry(key);
            if matches!(entry.disk, OnDisk::Dropping(_) | OnDisk::Fetching { cancelled: true, .. })
            {
                lacks.ease(*key, entry.disk_bytes());
            }
        }
        // Files that nobody waits for, or whose bytes are in host memory already; then those of
        // adapters behind.
        let in_host = |entry: &Entry| matches!(entry.host, InHost::Present { .. });
        let file = |entry: &Entry| entry.droppable_file().map(|file| file.bytes);
        let mut victims = self.by_dispensability(&self.disk.members, now, |entry| {
            (!entry.waits_for_device() || in_host(entry)).then(|| file(entry))?
        });
        let behind = self.behind(turn).map(|key| (key, self.entry(&key)));
        let behind = behind.filter(|(_, entry)| matches!(entry.host, InHost::Absent));
        victims.extend(behind.filter_map(|(key, entry)| Some((key, file(entry)?))));
        let dropped = match lacks.cover(&victims) {
            Ok(dropped) => dropped,
            Err(room) => return room,
        };
        for key in dropped {
            self.drop_file(key, actions);
        }
        Room::Coming
    }

    pub(super) fn drop_file(&mut self, key: AdapterKey, actions: &mut Vec<AdapterAction>) {
        let entry = self.entry_mut(&key);
        if let Some(file) = entry.droppable_file() {
            entry.disk = OnDisk::Dropping(file);
            actions.push(AdapterAction::Load(LoadAction::DropFile(file)));
        }
    }
}
