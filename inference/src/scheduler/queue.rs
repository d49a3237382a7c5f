//! Waiting sequences. Tenants take turns; a tenant's own sequences stand in order of arrival.
//! Whose turn comes next is decided here alone, so that shares other than equal ones are too.

use crate::backend::batch::SequenceId;
use lorikeet_contract::TenantId;
use std::collections::VecDeque;

#[derive(Debug)]
struct TenantQueue {
    tenant: TenantId,
    /// Never empty, ascending.
    waiting: VecDeque<SequenceId>,
    /// Those before it have been passed over in this pass.
    next: usize,
}

#[derive(Debug, Default)]
pub(super) struct TenantQueues {
    /// The tenant that had no turn for longest stands first.
    ring: VecDeque<TenantQueue>,
    len: usize,
}

/// A place in the queues; void after any change to them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    tenant: usize,
    at: usize,
}

impl TenantQueues {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn insert(&mut self, tenant: TenantId, id: SequenceId) {
        self.len += 1;
        match self.ring.iter_mut().find(|queue| queue.tenant == tenant) {
            Some(queue) => {
                let at = queue.waiting.partition_point(|waiting| *waiting < id);
                queue.waiting.insert(at, id);
            }
            None => self.ring.push_back(TenantQueue { tenant, waiting: [id].into(), next: 0 }),
        }
    }

    pub fn remove(&mut self, tenant: TenantId, id: SequenceId) {
        let Some(at) = self.ring.iter().position(|queue| queue.tenant == tenant) else { return };
        let queue = &mut self.ring[at];
        let Ok(place) = queue.waiting.binary_search(&id) else { return };
        queue.waiting.remove(place);
        self.len -= 1;
        if queue.waiting.is_empty() {
            self.ring.remove(at);
        }
    }

    /// A pass looks at each sequence at most once.
    pub fn begin_pass(&mut self) {
        for queue in &mut self.ring {
            queue.next = 0;
        }
    }

    /// The next sequence that is ready, with what made it so.
    pub fn next<T>(
        &mut self,
        mut ready: impl FnMut(SequenceId) -> Option<T>,
    ) -> Option<(Turn, SequenceId, T)> {
        for (tenant, queue) in self.ring.iter_mut().enumerate() {
            while let Some(&id) = queue.waiting.get(queue.next) {
                if let Some(proof) = ready(id) {
                    return Some((Turn { tenant, at: queue.next }, id, proof));
                }
                queue.next += 1;
            }
        }
        None
    }

    /// Takes out what `next` has found; the tenant's following turn comes after all others'.
    pub fn take(&mut self, turn: Turn) {
        let Some(mut queue) = self.ring.remove(turn.tenant) else { return };
        queue.waiting.remove(turn.at);
        self.len -= 1;
        if !queue.waiting.is_empty() {
            self.ring.push_back(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn tenant(id: u128) -> TenantId {
        TenantId::from_uuid(Uuid::from_u128(id))
    }

    fn drain(queues: &mut TenantQueues, ready: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut order = Vec::new();
        queues.begin_pass();
        while let Some((turn, id, ())) = queues.next(|id| ready(id.0).then_some(())) {
            queues.take(turn);
            order.push(id.0);
        }
        order
    }

    #[test]
    fn tenants_take_turns_and_each_is_served_in_order_of_arrival() {
        let mut queues = TenantQueues::default();
        for (t, id) in [(1, 1), (1, 2), (1, 3), (2, 4), (3, 5), (2, 6)] {
            queues.insert(tenant(t), SequenceId(id));
        }
        assert_eq!(drain(&mut queues, |_| true), [1, 4, 5, 2, 6, 3]);
        assert_eq!(queues.len(), 0);
    }

    #[test]
    fn one_that_is_not_ready_holds_up_nobody_and_keeps_its_place() {
        let mut queues = TenantQueues::default();
        for id in [1, 2, 3] {
            queues.insert(tenant(1), SequenceId(id));
        }
        assert_eq!(drain(&mut queues, |id| id != 1), [2, 3]);
        queues.insert(tenant(1), SequenceId(4));
        assert_eq!(drain(&mut queues, |_| true), [1, 4]);
    }

    #[test]
    fn one_that_lost_its_room_goes_before_those_that_arrived_later() {
        let mut queues = TenantQueues::default();
        for id in [3, 5, 2] {
            queues.insert(tenant(1), SequenceId(id));
        }
        queues.remove(tenant(1), SequenceId(3));
        assert_eq!(drain(&mut queues, |_| true), [2, 5]);
    }
}
