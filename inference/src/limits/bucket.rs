//! A token bucket: holds up to a minute's worth and is refilled evenly. All functions are of the state
//! and `now`, in integers, so that nothing is lost to rounding however often it is looked at.

use std::time::{Duration, Instant};

/// One unit: a rate in thousandths a minute, times the nanoseconds passed, is an amount in this.
const UNIT: i128 = 1000 * 60_000_000_000;

/// So many thousandths of a unit a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    thousandths: i128,
}

impl Rate {
    pub fn per_minute_thousandths(thousandths: u128) -> Self {
        // More than any clock could refill is as good as no limit.
        let most = u128::from(u64::MAX) * 1000;
        Self { thousandths: i128::try_from(thousandths.min(most)).unwrap_or(0) }
    }

    /// What a bucket holds: a minute's worth, and at least one unit unless nothing is allowed.
    fn capacity(self) -> i128 {
        match self.thousandths {
            0 => 0,
            thousandths => (thousandths * (UNIT / 1000)).max(UNIT),
        }
    }

    /// How long it takes to refill `amount`; None when that never happens.
    fn time_for(self, amount: i128) -> Option<Duration> {
        if amount <= 0 {
            return Some(Duration::ZERO);
        }
        if self.thousandths == 0 {
            return None;
        }
        let nanos = (amount + self.thousandths - 1) / self.thousandths;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Whole units that a full bucket holds.
    pub fn limit(self) -> u64 {
        whole(self.capacity())
    }
}

/// `level <= capacity`, and below zero after more was used than was there.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    level: i128,
    at: Instant,
}

/// What a bucket tells clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub limit: u64,
    pub remaining: u64,
    /// Until it is full; None: never.
    pub reset: Option<Duration>,
}

impl TokenBucket {
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self { level: rate.capacity(), at: now }
    }

    /// Takes `cost` if it is there; else says how long to wait for it (None: for ever). A cost above
    /// what the bucket can hold is let through when the bucket is full, and is owed afterwards.
    pub fn take(&mut self, rate: Rate, cost: u64, now: Instant) -> Result<(), Option<Duration>> {
        self.refill(rate, now);
        let cost = amount(cost);
        let needed = cost.min(rate.capacity());
        if needed > self.level || rate.capacity() == 0 {
            // Where nothing is allowed even nothing takes for ever.
            return Err(rate.time_for((needed - self.level).max(1)));
        }
        self.level -= cost;
        Ok(())
    }

    /// Takes what has been used already, there or not.
    pub fn charge(&mut self, cost: u64) {
        self.level = self.level.saturating_sub(amount(cost));
    }

    /// Gives back what was taken and not used.
    pub fn refund(&mut self, rate: Rate, cost: u64) {
        self.level = (self.level + amount(cost)).min(rate.capacity());
    }

    pub fn level(&mut self, rate: Rate, now: Instant) -> Level {
        self.refill(rate, now);
        Level {
            limit: rate.limit(),
            remaining: whole(self.level),
            reset: rate.time_for(rate.capacity() - self.level),
        }
    }

    pub fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.level >= rate.capacity()
    }

    /// A rate that has grown since adds nothing at once; one that has shrunk takes the surplus.
    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        let passed = i128::try_from(passed).unwrap_or(i128::MAX);
        let added = passed.saturating_mul(rate.thousandths);
        self.level = self.level.saturating_add(added).min(rate.capacity());
        self.at = self.at.max(now);
    }
}

fn amount(units: u64) -> i128 {
    i128::from(units) * UNIT
}

fn whole(level: i128) -> u64 {
    u64::try_from(level.max(0) / UNIT).unwrap_or(u64::MAX)
}
