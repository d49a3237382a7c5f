//! Keeps requests coming: so many at a time, or so many a second.

use super::request::{Outcome, Target};
use super::schedule::{Planned, Schedule, Workload};
use crate::bench::progress::Bar;
use lorikeet_inference::bench::cpu_seconds;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

/// A client whose request failed waits so long: a server that refuses is not overrun.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Closed loop: so many requests are always under way.
    Concurrency(usize),
    /// Open loop, at the times that the schedule says. One more than this many under way is not
    /// sent and counts as a failure.
    Arrivals { max_in_flight: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Requests(u64),
    Time(Duration),
}

pub struct Run {
    pub target: Arc<Target>,
    pub workload: Workload,
    pub pace: Pace,
    /// Requests sent within it are not counted; the load goes on without a gap.
    pub warm_up: Duration,
    pub length: Length,
    /// The server's process, if it is on this machine.
    pub server: Option<u32>,
}

/// What has been measured.
pub struct Measured {
    /// In the order in which they ended; those of the warm-up are none of them.
    pub outcomes: Vec<Outcome>,
    /// Those of the warm-up, of which some reach into the window.
    pub earlier: Vec<Outcome>,
    pub begin: Instant,
    /// Of the window: after it no request begins, and those under way end.
    pub end: Instant,
    pub client_cpu_seconds: Option<f64>,
    pub server_cpu_seconds: Option<f64>,
}

/// Decides what is sent next. The warm-up has a schedule of its own, so that the counted one is
/// the same however long it took.
struct Source {
    warm: Schedule,
    counted: Schedule,
    begin: Instant,
    /// No counted request begins after it.
    end: Option<Instant>,
    left: Option<u64>,
}

struct Next {
    planned: Planned,
    due: Instant,
    counts: bool,
}

impl Source {
    /// For a closed loop: what goes out now.
    fn next(&mut self, now: Instant) -> Option<Next> {
        if now >= self.begin {
            return self.next_counted(|_| now);
        }
        let planned = self.warm.next()?;
        Some(Next { planned, due: now, counts: false })
    }

    /// For an open loop: what goes out at its time. The warm-up lasts from `started` on.
    fn next_arrival(&mut self, started: Instant) -> Option<Next> {
        let planned = self.warm.next()?;
        let due = started + planned.at;
        if due < self.begin {
            return Some(Next { planned, due, counts: false });
        }
        let begin = self.begin;
        self.next_counted(|planned| begin + planned.at)
    }

    fn next_counted(&mut self, due: impl Fn(&Planned) -> Instant) -> Option<Next> {
        if self.left == Some(0) {
            return None;
        }
        let planned = self.counted.next()?;
        let due = due(&planned);
        if self.end.is_some_and(|end| due >= end) {
            return None;
        }
        self.left = self.left.map(|left| left - 1);
        Some(Next { planned, due, counts: true })
    }
}

impl Run {
    pub async fn measure(self) -> Measured {
        let started = Instant::now();
        let begin = started + self.warm_up;
        let (left, end) = match self.length {
            Length::Requests(count) => (Some(count), None),
            Length::Time(length) => (None, Some(begin + length)),
        };
        let bar = Arc::new(match self.length {
            Length::Requests(count) => Bar::over_count("warming up", count),
            Length::Time(length) => Bar::over_time("warming up", self.warm_up + length),
        });
        let warm_seed = !self.workload.seed;
        let source = Source {
            warm: Schedule::new(Workload { seed: warm_seed, ..self.workload.clone() }),
            counted: Schedule::new(self.workload.clone()),
            begin,
            end,
            left,
        };
        let clocks = tokio::spawn(clocks(begin, end, self.server, bar.clone()));
        let outcomes = match self.pace {
            Pace::Concurrency(count) => self.closed(source, count, bar).await,
            Pace::Arrivals { max_in_flight } => {
                self.open(source, started, max_in_flight, bar).await
            }
        };
        let last = outcomes.iter().filter(|(_, counts)| *counts).map(|(o, _)| o.ended).max();
        let end = end.or(last).unwrap_or(begin);
        let (earlier, outcomes): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|(_, counts)| !counts);
        let without_mark = |outcomes: Vec<(Outcome, bool)>| -> Vec<Outcome> {
            outcomes.into_iter().map(|(outcome, _)| outcome).collect()
        };
        let (client, server) = match clocks.await {
            Ok(clocks) => clocks.finish(),
            Err(_) => (None, None),
        };
        Measured {
            outcomes: without_mark(outcomes),
            earlier: without_mark(earlier),
            begin,
            end,
            client_cpu_seconds: client,
            server_cpu_seconds: server,
        }
    }

    async fn closed(&self, source: Source, count: usize, bar: Arc<Bar>) -> Vec<(Outcome, bool)> {
        let source = Arc::new(Mutex::new(source));
        let mut workers = JoinSet::new();
        for _ in 0..count {
            let (source, target, bar) = (source.clone(), self.target.clone(), bar.clone());
            workers.spawn(async move {
                let mut outcomes = Vec::new();
                let next =
                    || source.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
                while let Some(Next { planned, due, counts }) = next() {
                    let outcome = target.request(&planned, due).await;
                    if counts {
                        bar.step();
                    }
                    if outcome.failure.is_some() {
                        sleep(AFTER_FAILURE).await;
                    }
                    outcomes.push((outcome, counts));
                }
                outcomes
            });
        }
        workers.join_all().await.into_iter().flatten().collect()
    }

    async fn open(
        &self,
        mut source: Source,
        started: Instant,
        max_in_flight: usize,
        bar: Arc<Bar>,
    ) -> Vec<(Outcome, bool)> {
        let mut under_way = JoinSet::new();
        let mut outcomes = Vec::new();
        while let Some(Next { planned, due, counts }) = source.next_arrival(started) {
            sleep_until(due.into()).await;
            while let Some(Ok(ended)) = under_way.try_join_next() {
                outcomes.push(ended);
            }
            if under_way.len() >= max_in_flight {
                outcomes.push((Outcome::not_sent(&planned, due), counts));
                continue;
            }
            let (target, bar) = (self.target.clone(), bar.clone());
            under_way.spawn(async move {
                let outcome = target.request(&planned, due).await;
                if counts {
                    bar.step();
                }
                (outcome, counts)
            });
        }
        outcomes.extend(under_way.join_all().await);
        outcomes
    }
}

/// Processor time at the window's begin, and at its end where that is known beforehand.
struct Clocks {
    server: Option<u32>,
    begin: [Option<f64>; 2],
    end: Option<[Option<f64>; 2]>,
}

async fn clocks(
    begin: Instant,
    end: Option<Instant>,
    server: Option<u32>,
    bar: Arc<Bar>,
) -> Clocks {
    sleep_until(begin.into()).await;
    bar.say("measuring");
    let mut clocks = Clocks { server, begin: used(server), end: None };
    if let Some(end) = end {
        sleep_until(end.into()).await;
        clocks.end = Some(used(server));
    }
    clocks
}

impl Clocks {
    /// Client's and server's seconds.
    fn finish(self) -> (Option<f64>, Option<f64>) {
        let end = self.end.unwrap_or_else(|| used(self.server));
        let spent = |i: usize| Some(end[i]? - self.begin[i]?);
        (spent(0), spent(1))
    }
}

fn used(server: Option<u32>) -> [Option<f64>; 2] {
    [cpu_seconds(std::process::id()), server.and_then(cpu_seconds)]
}
