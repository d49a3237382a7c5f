//! Answers kept for those who ask again. A function of state and `now`; bounded for the node and for
//! each tenant.
//!
//! A key lives longer than its answer where room is short: then a repeat is refused, and not run and
//! billed once more. Keys are forgotten early only when there is no answer left to let go of.

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use lorikeet_contract::TenantId;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an answer is kept after its end.
pub const KEPT: Duration = Duration::from_secs(600);

/// An entry costs so much besides its key and its answer's body.
const ENTRY_BYTES: usize = 512;

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of everything on the node. Above it, the tenant that holds most gives way, among those of whose
    /// requests one has ended.
    pub node_bytes: usize,
    /// Of one tenant's. Above it, its oldest answers go, then its oldest keys; an answer that does not
    /// fit alone is not kept.
    pub tenant_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { node_bytes: 64 << 20, tenant_bytes: 8 << 20 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// A whole answer, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What a key means when a request comes with it.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing: the caller answers, and then says [`Answers::keep`] or [`Answers::forget`].
    Nothing,
    Running,
    /// The key came with another request.
    Other,
    Answered(Arc<Answer>),
    /// It was answered, and there was no room for the answer.
    NotKept,
}

#[derive(Debug)]
struct Entry {
    request: Fingerprint,
    /// Of the answer's body, as far as it has come.
    answer_bytes: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Running,
    Ended { answer: Option<Arc<Answer>>, at: Instant },
}

#[derive(Debug, Default)]
struct Tenant {
    entries: HashMap<String, Entry>,
    /// Keys of what has ended, the oldest first.
    ended: VecDeque<String>,
    /// Those of them whose answers are kept, in the same order.
    answered: VecDeque<String>,
    bytes: usize,
}

impl Tenant {
    /// Bytes that became free; None when nothing has ended.
    fn let_go(&mut self) -> Option<usize> {
        match self.answered.pop_front() {
            Some(key) => Some(self.drop_answer(&key)),
            None => self.drop_oldest(),
        }
    }

    fn drop_answer(&mut self, key: &str) -> usize {
        let Some(entry) = self.entries.get_mut(key) else { return 0 };
        if let State::Ended { answer, .. } = &mut entry.state {
            *answer = None;
        }
        std::mem::take(&mut entry.answer_bytes)
    }

    fn drop_oldest(&mut self) -> Option<usize> {
        let key = self.ended.pop_front()?;
        if self.answered.front() == Some(&key) {
            self.answered.pop_front();
        }
        let entry = self.entries.remove(&key)?;
        Some(cost(&key) + entry.answer_bytes)
    }

    fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    fn oldest_end(&self) -> Option<Instant> {
        match self.entries.get(self.ended.front()?)?.state {
            State::Ended { at, .. } => Some(at),
            State::Running => None,
        }
    }
}

fn cost(key: &str) -> usize {
    ENTRY_BYTES + key.len()
}

/// `bytes` is the sum of the tenants', each tenant's that of its entries.
#[derive(Debug)]
pub struct Answers {
    bounds: Bounds,
    tenants: HashMap<TenantId, Tenant>,
    by_bytes: BTreeSet<(usize, TenantId)>,
    bytes: usize,
    next_sweep: Option<Instant>,
}

impl Answers {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            tenants: HashMap::new(),
            by_bytes: BTreeSet::new(),
            bytes: 0,
            next_sweep: None,
        }
    }

    pub fn find(
        &mut self,
        tenant: TenantId,
        key: &str,
        request: Fingerprint,
        now: Instant,
    ) -> Found {
        self.sweep(now);
        self.expire(tenant, now);
        let known = self.tenants.get(&tenant).and_then(|t| t.entries.get(key));
        if let Some(entry) = known {
            return match &entry.state {
                _ if entry.request != request => Found::Other,
                State::Running => Found::Running,
                State::Ended { answer: Some(answer), .. } => Found::Answered(answer.clone()),
                State::Ended { answer: None, .. } => Found::NotKept,
            };
        }
        // One that is running is kept track of even above the bounds: their number is for others to
        // limit, and two of the same must not run.
        self.make_room(tenant, cost(key));
        let entry = Entry { request, answer_bytes: 0, state: State::Running };
        self.tenants.entry(tenant).or_default().entries.insert(key.to_owned(), entry);
        self.grew(tenant, cost(key));
        Found::Nothing
    }

    /// Charges what a running answer has grown by. False when there is no room for it, even without
    /// what has ended: the answer will not be kept, and nothing is charged for it any more.
    pub fn grow(&mut self, tenant: TenantId, key: &str, bytes: usize) -> bool {
        if !self.make_room(tenant, bytes) {
            self.drop_answer(tenant, key);
            return false;
        }
        let entry = self.tenants.get_mut(&tenant).and_then(|t| t.entries.get_mut(key));
        let Some(entry) = entry else { return false };
        entry.answer_bytes += bytes;
        self.grew(tenant, bytes);
        true
    }

    /// A running one has ended; `None` is an answer that was too large.
    pub fn keep(&mut self, tenant: TenantId, key: &str, answer: Option<Answer>, now: Instant) {
        let Some(of_tenant) = self.tenants.get_mut(&tenant) else { return };
        let Some(entry) = of_tenant.entries.get_mut(key) else { return };
        let is_kept = answer.is_some();
        entry.state = State::Ended { answer: answer.map(Arc::new), at: now };
        of_tenant.ended.push_back(key.to_owned());
        if is_kept {
            of_tenant.answered.push_back(key.to_owned());
            return;
        }
        self.drop_answer(tenant, key);
    }

    fn drop_answer(&mut self, tenant: TenantId, key: &str) {
        let freed = self.tenants.get_mut(&tenant).map_or(0, |t| t.drop_answer(key));
        self.shrank(tenant, freed);
    }

    /// A running one has ended without an answer worth keeping: the next with this key runs anew.
    pub fn forget(&mut self, tenant: TenantId, key: &str) {
        let Some(of_tenant) = self.tenants.get_mut(&tenant) else { return };
        let Some(entry) = of_tenant.entries.remove(key) else { return };
        self.shrank(tenant, cost(key) + entry.answer_bytes);
    }

    /// Lets go of what has ended until `bytes` more fit.
    fn make_room(&mut self, tenant: TenantId, bytes: usize) -> bool {
        while self.tenants.get(&tenant).map_or(0, |t| t.bytes) + bytes > self.bounds.tenant_bytes {
            if !self.let_go(tenant) {
                return false;
            }
        }
        while self.bytes + bytes > self.bounds.node_bytes {
            let has_ended = |id: &TenantId| self.tenants.get(id).is_some_and(Tenant::has_ended);
            let largest = self.by_bytes.iter().rev().map(|(_, id)| *id).find(has_ended);
            if !largest.is_some_and(|largest| self.let_go(largest)) {
                return false;
            }
        }
        true
    }

    /// False when nothing of the tenant's has ended.
    fn let_go(&mut self, tenant: TenantId) -> bool {
        let freed = self.tenants.get_mut(&tenant).and_then(Tenant::let_go);
        freed.map(|bytes| self.shrank(tenant, bytes)).is_some()
    }

    fn expire(&mut self, tenant: TenantId, now: Instant) {
        let is_old = |t: &Tenant| t.oldest_end().is_some_and(|at| now >= at + KEPT);
        while let Some(of_tenant) = self.tenants.get_mut(&tenant).filter(|t| is_old(t)) {
            let Some(freed) = of_tenant.drop_oldest() else { return };
            self.shrank(tenant, freed);
        }
    }

    /// Tenants that do not come again are looked at once a minute.
    fn sweep(&mut self, now: Instant) {
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        self.next_sweep = Some(now + Duration::from_secs(60));
        let tenants: Vec<TenantId> = self.tenants.keys().copied().collect();
        for tenant in tenants {
            self.expire(tenant, now);
        }
    }

    fn grew(&mut self, tenant: TenantId, bytes: usize) {
        self.now_holds(tenant, |held| held + bytes);
        self.bytes += bytes;
    }

    fn shrank(&mut self, tenant: TenantId, bytes: usize) {
        self.now_holds(tenant, |held| held - bytes);
        self.bytes -= bytes;
    }

    fn now_holds(&mut self, tenant: TenantId, bytes: impl FnOnce(usize) -> usize) {
        let Some(of_tenant) = self.tenants.get_mut(&tenant) else { return };
        self.by_bytes.remove(&(of_tenant.bytes, tenant));
        of_tenant.bytes = bytes(of_tenant.bytes);
        if of_tenant.entries.is_empty() {
            self.tenants.remove(&tenant);
        } else {
            self.by_bytes.insert((of_tenant.bytes, tenant));
        }
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        for (id, tenant) in &self.tenants {
            let of_entries = tenant.entries.iter().map(|(key, e)| cost(key) + e.answer_bytes);
            assert_eq!(tenant.bytes, of_entries.sum::<usize>(), "{id}");
            assert!(!tenant.entries.is_empty(), "an empty tenant is kept");
            assert!(self.by_bytes.contains(&(tenant.bytes, *id)));
            let running = |e: &&Entry| matches!(e.state, State::Running);
            let ended = tenant.entries.len() - tenant.entries.values().filter(running).count();
            assert_eq!(tenant.ended.len(), ended);
            let has_answer = |e: &&Entry| matches!(e.state, State::Ended { answer: Some(_), .. });
            let answered = tenant.entries.values().filter(has_answer).count();
            assert_eq!(tenant.answered.len(), answered);
        }
        assert_eq!(self.by_bytes.len(), self.tenants.len());
        assert_eq!(self.bytes, self.tenants.values().map(|t| t.bytes).sum::<usize>());
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
