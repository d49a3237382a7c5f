//! A stretch of time cut into hours or days (UTC), as charts show it. Pure.

use serde::Serialize;
use time::{Duration, OffsetDateTime, UtcOffset};

/// What a series has one point for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    Hour,
    Day,
}

impl Group {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "hour" => Some(Self::Hour),
            "day" => Some(Self::Day),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn length(self) -> Duration {
        match self {
            Self::Hour => Duration::HOUR,
            Self::Day => Duration::DAY,
        }
    }

    /// The start of the hour or day that `at` lies in.
    fn start(self, at: OffsetDateTime) -> OffsetDateTime {
        let length = self.length().whole_seconds();
        let since = at.unix_timestamp().rem_euclid(length);
        at.to_offset(UtcOffset::UTC).truncate_to_second() - Duration::seconds(since)
    }
}

/// Most points in one series.
pub const MAX_POINTS: i64 = 750;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeriodError {
    #[error("the period ends before it begins")]
    Backwards,
    #[error("the period has more than {MAX_POINTS} points: shorten it, or group by day")]
    TooLong,
    #[error("the period lies outside of the years 2020 to 2200")]
    OutOfRange,
}

/// Whole hours or days: `from` and `to` lie on their boundaries, `to` is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    from: OffsetDateTime,
    to: OffsetDateTime,
    group: Group,
}

impl Period {
    /// Everything from the hour or day of `from` to that of `to`, both whole.
    pub fn new(
        from: OffsetDateTime,
        to: OffsetDateTime,
        group: Group,
    ) -> Result<Self, PeriodError> {
        if to < from {
            return Err(PeriodError::Backwards);
        }
        if [from, to].iter().any(|at| !(2020..=2200).contains(&at.year())) {
            return Err(PeriodError::OutOfRange);
        }
        let period = Self { from: group.start(from), to: group.start(to) + group.length(), group };
        if period.len() > MAX_POINTS {
            return Err(PeriodError::TooLong);
        }
        Ok(period)
    }

    /// The last `count` hours or days, the current one included. At most [`MAX_POINTS`].
    pub fn last(count: i64, group: Group, now: OffsetDateTime) -> Self {
        let to = group.start(now) + group.length();
        let count = i32::try_from(count.clamp(1, MAX_POINTS)).unwrap_or(1);
        Self { from: to - group.length() * count, to, group }
    }

    pub fn from(&self) -> OffsetDateTime {
        self.from
    }

    pub fn to(&self) -> OffsetDateTime {
        self.to
    }

    pub fn group(&self) -> Group {
        self.group
    }

    fn len(&self) -> i64 {
        (self.to - self.from).whole_seconds() / self.group.length().whole_seconds()
    }

    /// The start of each hour or day, in order.
    pub fn starts(&self) -> impl Iterator<Item = OffsetDateTime> + use<> {
        let (to, length) = (self.to, self.group.length());
        std::iter::successors(Some(self.from), move |at| Some(*at + length))
            .take_while(move |at| *at < to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_period_covers_the_whole_days_it_touches_in_utc() {
        let from = datetime!(2026-11-02 23:30 +2);
        let to = datetime!(2026-11-04 00:00 UTC);
        let period = Period::new(from, to, Group::Day).expect("short");
        let starts: Vec<_> = period.starts().map(|at| at.day()).collect();
        assert_eq!(starts, [2, 3, 4]);
        assert_eq!(period.from(), datetime!(2026-11-02 00:00 UTC));
    }

    #[test]
    fn the_last_hours_end_with_the_current_one() {
        let period = Period::last(24, Group::Hour, datetime!(2026-11-24 08:59:59.9 UTC));
        assert_eq!(period.starts().count(), 24);
        assert_eq!(period.to(), datetime!(2026-11-24 09:00 UTC));
    }

    #[test]
    fn a_period_that_is_too_long_or_backwards_is_refused() {
        let (a, b) = (datetime!(2026-01-01 0:00 UTC), datetime!(2026-06-01 0:00 UTC));
        assert_eq!(Period::new(a, b, Group::Hour), Err(PeriodError::TooLong));
        assert!(Period::new(a, b, Group::Day).is_ok());
        assert_eq!(Period::new(b, a, Group::Day), Err(PeriodError::Backwards));
        let far = datetime!(9999-12-31 23:59 UTC);
        assert_eq!(Period::new(a, far, Group::Day), Err(PeriodError::OutOfRange));
    }
}
