//! How many requests the engine holds, waiting or running, and how many of each tenant.

use super::SubmitError;
use lorikeet_contract::TenantId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A tenant may hold this many times as many places as are free (dynamic thresholds: Choudhury and
/// Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). One alone gets
/// eight ninths of the queue, and two in a row leave places for a third: no tenant can fill the queue
/// for everyone.
const HELD_PER_FREE: usize = 8;

/// When it is full, or full for a tenant, requests are refused at once.
pub(super) struct Queue {
    max_requests: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    /// None of them 0.
    by_tenant: HashMap<TenantId, usize>,
}

/// Room for requests that are handed over later; what is left is given back when it is dropped.
pub struct Places {
    tenant: TenantId,
    count: usize,
    queue: Arc<Queue>,
}

impl Queue {
    pub fn new(max_requests: usize) -> Self {
        Self { max_requests, held: Mutex::default() }
    }

    /// Room for `count` requests, or for none of them.
    pub fn reserve(
        self: &Arc<Self>,
        tenant: TenantId,
        count: usize,
    ) -> Result<Places, SubmitError> {
        let mut held = self.lock();
        let free = self.max_requests - held.total;
        if count > free {
            return Err(SubmitError::QueueFull);
        }
        let own = held.by_tenant.get(&tenant).copied().unwrap_or_default() + count;
        if own > HELD_PER_FREE * free {
            return Err(SubmitError::TenantQueueFull);
        }
        held.total += count;
        if count > 0 {
            held.by_tenant.insert(tenant, own);
        }
        Ok(Places { tenant, count, queue: Arc::clone(self) })
    }

    fn release(&self, tenant: TenantId, count: usize) {
        let mut held = self.lock();
        held.total -= count;
        if let Some(own) = held.by_tenant.get_mut(&tenant) {
            *own -= count;
            if *own == 0 {
                held.by_tenant.remove(&tenant);
            }
        }
    }

    /// Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// One of them, if there is one left.
    pub(super) fn split_one(&mut self) -> Option<Places> {
        self.count = self.count.checked_sub(1)?;
        Some(Places { tenant: self.tenant, count: 1, queue: Arc::clone(&self.queue) })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.queue.release(self.tenant, self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn tenant(id: u128) -> TenantId {
        TenantId::from_uuid(Uuid::from_u128(id))
    }

    fn fill(queue: &Arc<Queue>, id: u128) -> Vec<Places> {
        std::iter::from_fn(|| queue.reserve(tenant(id), 1).ok()).collect()
    }

    #[test]
    fn no_tenant_can_fill_the_queue_for_the_others() {
        let queue = Arc::new(Queue::new(512));
        let greedy: Vec<_> = (0..2).map(|id| fill(&queue, id)).collect();
        assert_eq!(greedy[0].len(), 456);
        assert!(matches!(queue.reserve(tenant(0), 1), Err(SubmitError::TenantQueueFull)));
        assert!(greedy.iter().all(|places| !places.is_empty()));
        assert!(queue.reserve(tenant(9), 1).is_ok());
        drop(greedy);
        assert!(queue.reserve(tenant(1), 400).is_ok());
        assert!(queue.lock().by_tenant.is_empty() && queue.lock().total == 0);
    }

    #[test]
    fn a_full_queue_refuses_everybody_and_places_come_back_one_by_one() {
        let queue = Arc::new(Queue::new(2));
        let mut places = queue.reserve(tenant(1), 2).ok().unwrap();
        assert!(matches!(queue.reserve(tenant(2), 1), Err(SubmitError::QueueFull)));
        drop(places.split_one());
        assert!(queue.reserve(tenant(2), 1).is_ok());
        drop(places.split_one());
        assert!(places.split_one().is_none());
        assert_eq!(queue.lock().total, 0);
    }
}
