//! Who is served next: a virtual token counter for each tenant (Sheng et al., "Fairness in Serving
//! Large Language Models", OSDI 2024, algorithms 2 and 4). Whoever has been served least, by its
//! weight, comes first; a tenant's own sequences stand in order of arrival. A tenant with nothing
//! waiting saves nothing up: when it comes back, its counter is lifted to that of the least served of
//! those who wait.
//!
//! So between two tenants that both wait, the service by weight differs by no more than what runs at
//! once and one prompt cost, however many requests either sends.

use super::price::Cost;
use lorikeet_compute::backend::batch::SequenceId;
use lorikeet_contract::TenantId;
use std::collections::{HashMap, VecDeque};

/// Counters grow by `cost * SCALE / weight`. At weight 1 and a million tokens a second they last
/// for more than half a year, and then saturate; at the usual 100 for more than fifty.
const SCALE: u64 = 1024;

/// A tenant's place in the table; valid for the scheduler's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account(usize);

/// Service received, by weight. The least comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Served(pub(super) u64);

#[derive(Debug)]
struct Tenant {
    weight: u64,
    served: Served,
    /// Ascending.
    waiting: VecDeque<SequenceId>,
    /// Those before it have been passed over in this pass.
    next: usize,
}

/// Counters are kept for as long as the process lives, some 100 bytes for each tenant that has ever
/// asked: forgetting one would forgive what it has had.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    tenants: Vec<Tenant>,
    accounts: HashMap<TenantId, Account>,
    /// Those with waiting sequences.
    backlogged: Vec<Account>,
    /// The last of whom something waited.
    last: Option<Account>,
    waiting: usize,
}

/// A place in the queues; void after any change to them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub account: Account,
    at: usize,
}

impl Tenants {
    /// Waiting sequences.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// The tenant's account; its weight counts from now on.
    pub fn open(&mut self, tenant: TenantId, weight: u32) -> Account {
        let weight = u64::from(weight.max(1));
        let next = Account(self.tenants.len());
        let account = *self.accounts.entry(tenant).or_insert(next);
        if account == next {
            let (served, waiting) = (Served::default(), VecDeque::new());
            self.tenants.push(Tenant { weight, served, waiting, next: 0 });
        }
        self.tenants[account.0].weight = weight;
        account
    }

    pub fn served(&self, account: Account) -> Served {
        self.tenants[account.0].served
    }

    /// What the tenant will have been served after such a cost.
    pub fn served_after(&self, account: Account, cost: Cost) -> Served {
        let tenant = &self.tenants[account.0];
        Served(tenant.served.0.saturating_add(virtual_cost(cost, tenant.weight)))
    }

    pub fn charge(&mut self, account: Account, cost: Cost) {
        self.tenants[account.0].served = self.served_after(account, cost);
    }

    pub fn served_by(&self, tenant: &TenantId) -> Served {
        self.accounts.get(tenant).map(|account| self.served(*account)).unwrap_or_default()
    }

    pub fn charge_tenant(&mut self, tenant: &TenantId, cost: Cost) {
        if let Some(account) = self.accounts.get(tenant).copied() {
            self.charge(account, cost);
        }
    }

    /// A sequence has arrived.
    pub fn arrive(&mut self, account: Account, id: SequenceId) {
        self.lift(account);
        self.wait(account, id);
    }

    /// The tenant wants something. If nothing of it waits it comes back, with nothing saved up.
    pub fn lift(&mut self, account: Account) {
        if !self.tenants[account.0].waiting.is_empty() {
            return;
        }
        let waiting = self.backlogged.iter().map(|other| self.served(*other)).min();
        let level = waiting.or_else(|| self.last.map(|last| self.served(last)));
        let tenant = &mut self.tenants[account.0];
        tenant.served = tenant.served.max(level.unwrap_or_default());
    }

    /// A sequence waits, in its place by arrival.
    pub fn wait(&mut self, account: Account, id: SequenceId) {
        let Tenant { waiting, next, .. } = &mut self.tenants[account.0];
        if waiting.is_empty() {
            self.backlogged.push(account);
            *next = 0;
        }
        let at = waiting.partition_point(|other| *other < id);
        waiting.insert(at, id);
        self.waiting += 1;
    }

    pub fn remove(&mut self, account: Account, id: SequenceId) {
        if let Ok(at) = self.tenants[account.0].waiting.binary_search(&id) {
            self.take(Turn { account, at });
        }
    }

    /// A pass looks at each sequence at most once.
    pub fn begin_pass(&mut self) {
        for account in &self.backlogged {
            self.tenants[account.0].next = 0;
        }
    }

    /// Nobody comes next any more, until the next pass begins.
    pub fn end_pass(&mut self) {
        for account in &self.backlogged {
            self.tenants[account.0].next = usize::MAX;
        }
    }

    /// The next sequence that is ready, with what made it so.
    pub fn next<T>(
        &mut self,
        mut ready: impl FnMut(SequenceId) -> Option<T>,
    ) -> Option<(Turn, SequenceId, T)> {
        loop {
            let heads = self.backlogged.iter().filter_map(|account| {
                let tenant = &self.tenants[account.0];
                tenant.waiting.get(tenant.next).map(|head| (tenant.served, *head, *account))
            });
            let (_, _, account) = heads.min_by_key(|(served, head, _)| (*served, *head))?;
            let tenant = &mut self.tenants[account.0];
            while let Some(&id) = tenant.waiting.get(tenant.next) {
                if let Some(proof) = ready(id) {
                    return Some((Turn { account, at: tenant.next }, id, proof));
                }
                tenant.next += 1;
            }
        }
    }

    /// Takes out what `next` has found.
    pub fn take(&mut self, turn: Turn) {
        let waiting = &mut self.tenants[turn.account.0].waiting;
        if waiting.remove(turn.at).is_none() {
            return;
        }
        self.waiting -= 1;
        if waiting.is_empty() {
            self.backlogged.retain(|account| *account != turn.account);
            self.last = Some(turn.account);
        }
    }
}

#[cfg(test)]
impl Tenants {
    /// Each tenant, whether something of it waits, what it has been served, and its weight.
    pub fn standings(&self) -> impl Iterator<Item = (TenantId, bool, Served, u64)> {
        self.accounts.iter().map(|(id, account)| {
            let tenant = &self.tenants[account.0];
            (*id, !tenant.waiting.is_empty(), tenant.served, tenant.weight)
        })
    }
}

pub(super) fn virtual_cost(cost: Cost, weight: u64) -> u64 {
    cost.0.saturating_mul(SCALE) / weight
}

#[cfg(test)]
mod tests;
