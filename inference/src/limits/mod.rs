//! What one tenant may do on this node, checked before the engine's queue: requests at once, requests
//! and tokens per minute.
//!
//! A request is admitted in two steps, so that a tenant over its limit costs no tokenizing: [`enter`]
//! takes a place and one request, [`Permit::reserve`] the tokens. Reserved is the prompt and, where the
//! client named one, `max_tokens`; output beyond that is charged as it comes, and what was reserved and
//! not used goes back at the end. So a bucket may fall below zero, by the answers under way that named
//! no `max_tokens`, and the tenant then waits until it has been refilled.
//!
//! [`enter`]: Limiter::enter

mod bucket;
#[cfg(test)]
mod tests;

pub use bucket::{Level, Rate};

use crate::link::TenantLimits;
use bucket::TokenBucket;
use lorikeet_contract::TenantId;
use lorikeet_contract::rate::RateShare;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where nothing is allowed there is nothing to wait for; a client that asks again does so rarely.
const NEVER: Duration = Duration::from_secs(60);

/// This node's part of a tenant's limits at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance {
    max_concurrency: Option<u32>,
    requests: Option<Metered>,
    tokens: Option<Metered>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Metered {
    rate: Rate,
    /// The tenant's, over all nodes.
    limit: u64,
}

impl Allowance {
    pub fn new(limits: &TenantLimits, share: RateShare) -> Self {
        let metered = |limit: u64| Metered {
            rate: Rate::per_minute_thousandths(share.thousandths(limit)),
            limit,
        };
        Self {
            max_concurrency: limits.max_concurrency,
            requests: limits.requests_per_minute.map(metered),
            tokens: limits.tokens_per_minute.map(metered),
        }
    }
}

/// Which limit a request ran into.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error(
        "The account's limit of {limit} requests at once is reached. Wait for one to end, or ask for \
         a higher limit."
    )]
    Concurrency { limit: u32 },
    #[error("The account may make no {what}. Ask for a limit above zero.")]
    Nothing { what: &'static str },
    #[error(
        "The account's limit of {limit} {what} per minute is reached{}. Try again in {}, or ask for a \
         higher limit.",
        part(*here, *limit),
        seconds(*wait)
    )]
    Rate { what: &'static str, limit: u64, here: u64, wait: Duration },
}

impl Exceeded {
    /// When it is worth to ask again.
    pub fn retry_after(&self) -> Duration {
        match self {
            // Nobody knows when a request ends.
            Self::Concurrency { .. } => Duration::from_secs(1),
            Self::Nothing { .. } => NEVER,
            Self::Rate { wait, .. } => *wait,
        }
    }
}

fn part(here: u64, limit: u64) -> String {
    if here >= limit { String::new() } else { format!(" on this node, whose part is {here}") }
}

fn seconds(wait: Duration) -> String {
    format!("{} s", wait.as_secs_f64().ceil().max(1.0))
}

/// One for a node. Holds a tenant only while it has requests under way or a bucket that is not full.
#[derive(Debug, Default)]
pub struct Limiter {
    accounts: Mutex<Accounts>,
}

#[derive(Debug, Default)]
struct Accounts {
    by_tenant: HashMap<TenantId, Account>,
    /// Accounts left by the last sweep: the next comes when there are twice as many, so that sweeping
    /// costs a constant for each account that was made.
    swept: usize,
}

#[derive(Debug)]
struct Account {
    running: u32,
    requests: TokenBucket,
    tokens: TokenBucket,
    /// As of the last look, for the sweep.
    allowance: Allowance,
}

impl Account {
    fn new(allowance: Allowance, now: Instant) -> Self {
        let full = |metered: Option<Metered>| {
            TokenBucket::full(metered.map_or(Rate::per_minute_thousandths(0), |m| m.rate), now)
        };
        let (requests, tokens) = (full(allowance.requests), full(allowance.tokens));
        Self { running: 0, requests, tokens, allowance }
    }

    /// The bucket of a limit that was not there before begins full.
    fn follow(&mut self, allowance: Allowance, now: Instant) {
        if self.allowance == allowance {
            return;
        }
        let fresh = Self::new(allowance, now);
        if self.allowance.requests.is_none() {
            self.requests = fresh.requests;
        }
        if self.allowance.tokens.is_none() {
            self.tokens = fresh.tokens;
        }
        self.allowance = allowance;
    }

    fn enter(&mut self, now: Instant) -> Result<(), Exceeded> {
        if let Some(limit) = self.allowance.max_concurrency
            && self.running >= limit
        {
            return Err(match limit {
                0 => Exceeded::Nothing { what: "requests" },
                limit => Exceeded::Concurrency { limit },
            });
        }
        take(&mut self.requests, self.allowance.requests, "requests", 1, now)?;
        self.running += 1;
        Ok(())
    }

    fn reserve(&mut self, tokens: u64, now: Instant) -> Result<(), Exceeded> {
        take(&mut self.tokens, self.allowance.tokens, "tokens", tokens, now)
    }

    fn is_idle(&mut self, now: Instant) -> bool {
        let Allowance { requests, tokens, .. } = self.allowance;
        self.running == 0
            && requests.is_none_or(|m| self.requests.is_full(m.rate, now))
            && tokens.is_none_or(|m| self.tokens.is_full(m.rate, now))
    }
}

fn take(
    bucket: &mut TokenBucket,
    metered: Option<Metered>,
    what: &'static str,
    cost: u64,
    now: Instant,
) -> Result<(), Exceeded> {
    let Some(Metered { rate, limit }) = metered else { return Ok(()) };
    bucket.take(rate, cost, now).map_err(|wait| match wait {
        None => Exceeded::Nothing { what },
        Some(wait) => Exceeded::Rate { what, limit, here: rate.limit(), wait },
    })
}

/// What a limited tenant is told with every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    pub requests: Option<Level>,
    pub tokens: Option<Level>,
}

impl Limiter {
    /// Takes a place and one request of the tenant's, or says which limit forbids it.
    pub fn enter(
        self: &Arc<Self>,
        tenant: TenantId,
        allowance: Allowance,
        now: Instant,
    ) -> Result<Permit, Exceeded> {
        self.lock().account(tenant, allowance, now).enter(now)?;
        Ok(Permit { limiter: self.clone(), tenant, tokens: Mutex::default() })
    }

    pub fn levels(&self, tenant: TenantId, allowance: Allowance, now: Instant) -> Levels {
        let Allowance { requests, tokens, .. } = allowance;
        if requests.is_none() && tokens.is_none() {
            return Levels::default();
        }
        let mut accounts = self.lock();
        let account = accounts.account(tenant, allowance, now);
        Levels {
            requests: requests.map(|m| account.requests.level(m.rate, now)),
            tokens: tokens.map(|m| account.tokens.level(m.rate, now)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        // Counts are whole at every step, also when a holder panicked.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    fn account(&mut self, tenant: TenantId, allowance: Allowance, now: Instant) -> &mut Account {
        if self.by_tenant.len() >= 2 * self.swept + 16 && !self.by_tenant.contains_key(&tenant) {
            self.by_tenant.retain(|_, account| !account.is_idle(now));
            self.swept = self.by_tenant.len();
        }
        let account = self.by_tenant.entry(tenant).or_insert_with(|| Account::new(allowance, now));
        account.follow(allowance, now);
        account
    }
}

/// A request's place among its tenant's. Dropped at the request's end, it gives back the place, what was
/// reserved and not used, and the request itself if it came to nothing before the engine took it.
#[derive(Debug)]
pub struct Permit {
    limiter: Arc<Limiter>,
    tenant: TenantId,
    tokens: Mutex<PermitTokens>,
}

#[derive(Debug, Default)]
struct PermitTokens {
    /// None: it has not got that far.
    reserved: Option<u64>,
    used: u64,
    withdrawn: bool,
}

impl PermitTokens {
    /// Beyond what was reserved.
    fn owed(&self) -> u64 {
        self.used.saturating_sub(self.reserved.unwrap_or(0))
    }
}

impl Permit {
    /// Takes `prompt` and, of what may follow, `completion`. Once for each permit.
    pub fn reserve(&self, prompt: u64, completion: u64, now: Instant) -> Result<(), Exceeded> {
        let reserved = prompt.saturating_add(completion);
        if let Some(account) = self.limiter.lock().by_tenant.get_mut(&self.tenant) {
            account.reserve(reserved, now)?;
        }
        *self.tokens() = PermitTokens { reserved: Some(reserved), used: prompt, withdrawn: false };
        Ok(())
    }

    /// The request came to nothing after all: everything goes back.
    pub fn withdraw(&self) {
        let mut tokens = self.tokens();
        tokens.used = 0;
        tokens.withdrawn = true;
    }

    /// So many more tokens have been generated.
    pub fn generated(&self, count: u64) {
        let owed = {
            let mut tokens = self.tokens();
            let before = tokens.owed();
            tokens.used = tokens.used.saturating_add(count);
            tokens.owed() - before
        };
        if owed > 0
            && let Some(account) = self.limiter.lock().by_tenant.get_mut(&self.tenant)
        {
            account.tokens.charge(owed);
        }
    }

    fn tokens(&self) -> MutexGuard<'_, PermitTokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let PermitTokens { reserved, used, withdrawn } = std::mem::take(&mut *self.tokens());
        let mut accounts = self.limiter.lock();
        // An account with a request under way is never swept.
        let Some(account) = accounts.by_tenant.get_mut(&self.tenant) else { return };
        account.running = account.running.saturating_sub(1);
        let Allowance { requests, tokens, .. } = account.allowance;
        if (reserved.is_none() || withdrawn)
            && let Some(metered) = requests
        {
            account.requests.refund(metered.rate, 1);
        }
        let unused = reserved.unwrap_or(0).saturating_sub(used);
        if let Some(metered) = tokens {
            account.tokens.refund(metered.rate, unused);
        }
    }
}
