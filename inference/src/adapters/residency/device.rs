//! Host memory to the device, and whose place is given to whom.

use super::entry::{Entry, InHost, OnDevice};
use super::tier::{Room, Shortage, dispensability};
use super::{AdapterAction, Claim, Claims, Residency};
use crate::adapters::AdapterKey;
use lorikeet_compute::backend::AdapterSlot;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

/// Plans in a row that an adapter in use may sit out without losing its turn: a step that runs ahead,
/// and rows that wait for their last token, leave gaps.
const IDLE_PLANS: u64 = 4;

/// On the device, in the order in which they give way.
#[derive(Default)]
struct Victims {
    unneeded: Vec<(Reverse<u128>, Instant, AdapterKey)>,
    /// Their turn has ended. Who came last goes first: the others go on to the end of their requests,
    /// while more come for those that wait, and then share a place.
    in_use: Vec<(Reverse<Instant>, AdapterKey)>,
    /// For an adapter that has no room beside the pins.
    pinned: Vec<(Reverse<u128>, Instant, AdapterKey)>,
}

impl Victims {
    fn into_order(mut self) -> impl Iterator<Item = AdapterKey> {
        self.unneeded.sort_unstable();
        self.in_use.sort_unstable();
        self.pinned.sort_unstable();
        let unneeded = self.unneeded.into_iter().map(|(_, _, key)| key);
        let in_use = self.in_use.into_iter().map(|(_, key)| key);
        unneeded.chain(in_use).chain(self.pinned.into_iter().map(|(_, _, key)| key))
    }
}

impl Residency {
    pub(super) fn upload(
        &mut self,
        now: Instant,
        claims: &Claims,
        actions: &mut Vec<AdapterAction>,
    ) {
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
            // Gaps are closed only between copies: whoever needs that has them end.
            if entry.refused_uploads > 0 && self.uploads > 0 {
                return;
            }
            if let Some(reason) = self.too_large_for_device(key, bytes) {
                self.fail(key, reason, now);
                continue;
            }
            match self.make_device_room(key, bytes, now, claims, actions) {
                Room::Now => {}
                Room::OverQuota => continue,
                Room::Coming | Room::Full => return,
            }
            let Some(slot) = self.slots.take(key) else { return };
            self.device.reserve(key, bytes);
            self.uploads += 1;
            self.entry_mut(&key).device = OnDevice::Uploading { bytes, since: now };
            actions.push(AdapterAction::Upload { slot, adapter });
        }
    }

    fn too_large_for_device(&self, key: AdapterKey, bytes: u64) -> Option<String> {
        let room = self.memory.bytes;
        if bytes > room {
            return Some(format!("it needs {bytes} bytes on the device, this node has {room}"));
        }
        let quota = self.share(key.tenant).device_bytes.filter(|quota| bytes > *quota)?;
        Some(format!("it needs {bytes} bytes on the device, its tenant may have {quota}"))
    }

    /// When room is coming, adapters have been told to leave, and there is room when the steps that
    /// read them have been collected.
    fn make_device_room(
        &mut self,
        key: AdapterKey,
        bytes: u64,
        now: Instant,
        claims: &Claims,
        actions: &mut Vec<AdapterAction>,
    ) -> Room {
        let lacks = self.device_shortage(key, bytes);
        if lacks.is_none() {
            return Room::Now;
        }
        if Claim::of(&key, claims).can_run() && self.borrow(&lacks, actions) {
            return Room::Now;
        }
        let candidates = |key: AdapterKey| (key, self.entry(&key).device_bytes());
        let (lacks, victims) = self.device_victims(key, bytes, now, claims, lacks);
        let victims: Vec<_> = victims.into_order().map(candidates).collect();
        let leaving = match lacks.cover(&victims) {
            Ok(leaving) => leaving,
            Err(room) => return room,
        };
        for key in leaving {
            if let OnDevice::Present { leaving, .. } = &mut self.entry_mut(&key).device {
                *leaving = true;
            }
        }
        self.evict_leaving(now, actions);
        if self.device_shortage(key, bytes).is_none() { Room::Now } else { Room::Coming }
    }

    fn device_shortage(&self, key: AdapterKey, bytes: u64) -> Shortage {
        let quota = self.share(key.tenant).device_bytes;
        let mut lacks = self.device.shortage(key.tenant, bytes, quota);
        // What the device has refused may need neighbours gone: twice the bytes, three times, ...
        let refusals = u64::from(self.entry(&key).refused_uploads);
        let most = self.device.capacity - self.staying_for(key, bytes);
        let free = bytes.saturating_mul(1 + refusals).min(most.max(bytes));
        lacks.bytes = free.saturating_sub(self.device.free());
        lacks.slots = usize::from(self.slots.free() == 0);
        lacks
    }

    /// Bytes of pins that keep their places on the device whatever comes for the adapter.
    pub(super) fn staying_for(&self, key: AdapterKey, bytes: u64) -> u64 {
        if self.displaces_pins_on_device(key, bytes) {
            return 0;
        }
        let held = self.device.members.iter().map(|key| self.entry(key));
        held.filter(|entry| entry.is_held()).map(Entry::device_bytes).sum()
    }

    /// Who could leave for it, and what lacks when those who are leaving have left.
    fn device_victims(
        &self,
        wanted: AdapterKey,
        bytes: u64,
        now: Instant,
        claims: &Claims,
        mut lacks: Shortage,
    ) -> (Shortage, Victims) {
        let displaces_pins = self.displaces_pins_on_device(wanted, bytes);
        let newcomer = Claim::of(&wanted, claims);
        let mut victims = Victims::default();
        for key in &self.device.members {
            let entry = self.entry(key);
            let OnDevice::Present { bytes, turn_ends, yields_from, leaving, ref lease } =
                entry.device
            else {
                continue;
            };
            if leaving {
                lacks.ease(*key, bytes);
                continue;
            }
            let sits_out = self.sits_out(lease.slot());
            let claim = Claim::of(key, claims);
            let is_over = match newcomer.is_new && !claim.is_new {
                true => yields_from <= now,
                false => turn_ends <= now,
            };
            let had_its_turn = is_over && claim.served >= newcomer.served;
            let gives_way = newcomer.can_run() && (sits_out || had_its_turn);
            let is_due = !entry.is_demanded() || gives_way;
            let idle = now.saturating_duration_since(entry.last_used);
            let rank = Reverse(dispensability(idle, bytes, self.share(key.tenant).weight));
            match (entry.is_held(), entry.is_demanded()) {
                _ if !is_due => {}
                (true, _) if displaces_pins => {
                    victims.pinned.push((rank, entry.last_used, *key));
                }
                (true, _) => {}
                (false, true) => victims.in_use.push((Reverse(lease.since()), *key)),
                (false, false) => victims.unneeded.push((rank, entry.last_used, *key)),
            }
        }
        (lacks, victims)
    }

    fn sits_out(&self, slot: AdapterSlot) -> bool {
        self.slots.ran(slot) + IDLE_PLANS < self.plans
    }

    pub(super) fn evict_leaving(&mut self, now: Instant, actions: &mut Vec<AdapterAction>) {
        let mut at = 0;
        while let Some(key) = self.device.members.get(at).copied() {
            let (slot, bytes, turn_ends) = match &self.entry(&key).device {
                OnDevice::Present { lease, bytes, turn_ends, leaving: true, .. }
                    if !lease.is_shared() =>
                {
                    (lease.slot(), *bytes, *turn_ends)
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            let is_cut_short = now < turn_ends && !self.sits_out(slot);
            let entry = self.entry_mut(&key);
            entry.device = OnDevice::Absent;
            if entry.is_wanted() {
                entry.last_used = now;
                if !is_cut_short {
                    entry.waits_since = now;
                }
                self.wanted.push_back(key);
                self.rotations += 1;
            }
            self.slots.release(slot);
            self.device.release(key, bytes);
            actions.push(AdapterAction::Evict(slot));
        }
    }
}
