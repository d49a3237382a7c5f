//! What the outcomes come to, as JSON and as a table.

use super::load::Measured;
use super::request::Outcome;
use lorikeet_inference::bench::Percentiles;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Times in milliseconds. Requests count when they were sent within the window; tokens when they
/// came within it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub seconds: f64,
    pub requests: usize,
    pub failed: usize,
    pub errors: BTreeMap<String, usize>,
    /// Ended well within the window.
    pub requests_per_second: f64,
    pub output_tokens_per_second: f64,
    /// Prompts included, when their first token came.
    pub total_tokens_per_second: f64,
    pub times: Times,
    /// Empty when there is one tenant.
    pub tenants: Vec<TenantReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Goodput>,
    pub client: Client,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
}

#[derive(Debug, Serialize)]
pub struct Times {
    /// From when a request was due to its first text.
    pub ttft: Percentiles,
    /// For each token after the first, averaged over a request.
    pub tpot: Percentiles,
    /// Between two texts.
    pub itl: Percentiles,
    /// From when a request was due to its end.
    pub latency: Percentiles,
}

#[derive(Debug, Serialize)]
pub struct TenantReport {
    /// By the order of the keys, from 1.
    pub tenant: usize,
    pub requests: usize,
    pub failed: usize,
    pub output_tokens_per_second: f64,
    pub times: Times,
}

#[derive(Debug, Serialize)]
pub struct Goodput {
    pub objectives: Vec<Objective>,
    /// Of all requests.
    pub share: f64,
    pub requests_per_second: f64,
}

/// What measuring cost.
#[derive(Debug, Serialize)]
pub struct Client {
    pub cpu_seconds: Option<f64>,
    /// Of one core.
    pub cpu_share: Option<f64>,
    /// From when a request was due until it was sent.
    pub lag: Percentiles,
}

#[derive(Debug, Serialize)]
pub struct Server {
    pub cpu_seconds: f64,
    pub cpu_ms_per_output_token: f64,
}

/// A limit in milliseconds, such as `ttft:500`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Objective {
    pub of: Quantity,
    pub milliseconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantity {
    Ttft,
    Tpot,
    Latency,
}

impl FromStr for Objective {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "ttft, tpot or latency and milliseconds are wanted, as in ttft:500";
        let (of, milliseconds) = text.split_once(':').ok_or(WANTED)?;
        let of = match of {
            "ttft" => Quantity::Ttft,
            "tpot" => Quantity::Tpot,
            "latency" => Quantity::Latency,
            _ => return Err(WANTED),
        };
        let milliseconds = milliseconds.parse().map_err(|_| WANTED)?;
        Ok(Self { of, milliseconds })
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Outcome {
    fn ttft(&self) -> Option<f64> {
        Some(milliseconds(*self.texts.first()? - self.due))
    }

    fn tpot(&self) -> Option<f64> {
        let (first, last) = self.texts.first().zip(self.texts.last())?;
        let further = self.output_tokens.checked_sub(1).filter(|n| *n > 0)?;
        Some(milliseconds(*last - *first) / f64::from(further))
    }

    fn latency(&self) -> f64 {
        milliseconds(self.ended - self.due)
    }

    fn keeps(&self, objective: &Objective) -> bool {
        let value = match objective.of {
            Quantity::Ttft => self.ttft(),
            Quantity::Tpot => self.tpot().or(Some(0.0)),
            Quantity::Latency => Some(self.latency()),
        };
        value.is_some_and(|value| value <= objective.milliseconds)
    }

    /// Tokens that came within a window: a text stands for its share of the request's tokens.
    fn tokens_within(&self, begin: Instant, end: Instant) -> f64 {
        if self.texts.is_empty() {
            return 0.0;
        }
        let within = self.texts.iter().filter(|at| (begin..=end).contains(*at)).count();
        f64::from(self.output_tokens) * within as f64 / self.texts.len() as f64
    }
}

impl Times {
    fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> Self {
        let good = outcomes.filter(|outcome| outcome.failure.is_none());
        let gaps = good.clone().flat_map(|outcome| outcome.texts.windows(2));
        Self {
            ttft: Percentiles::of(good.clone().filter_map(Outcome::ttft).collect()),
            tpot: Percentiles::of(good.clone().filter_map(Outcome::tpot).collect()),
            itl: Percentiles::of(gaps.map(|pair| milliseconds(pair[1] - pair[0])).collect()),
            latency: Percentiles::of(good.map(Outcome::latency).collect()),
        }
    }
}

impl Report {
    pub fn new(measured: &Measured, tenants: usize, objectives: &[Objective]) -> Self {
        let Measured { outcomes, earlier, begin, end, .. } = measured;
        let seconds = (*end - *begin).as_secs_f64().max(f64::MIN_POSITIVE);
        let rate = |count: f64| count / seconds;
        let all = || earlier.iter().chain(outcomes);
        let is_within = |at: &Instant| (begin..=end).contains(&at);
        let output = |tenant: Option<usize>| -> f64 {
            let of_tenant = all().filter(|o| tenant.is_none_or(|tenant| o.tenant == tenant));
            of_tenant.map(|o| o.tokens_within(*begin, *end)).sum()
        };
        let prompts = all().filter(|o| o.texts.first().is_some_and(is_within));
        let prompts: f64 = prompts.map(|o| f64::from(o.prompt_tokens)).sum();
        let ended = all().filter(|o| o.failure.is_none() && is_within(&o.ended)).count();
        let mut errors = BTreeMap::new();
        for failure in outcomes.iter().filter_map(|o| o.failure.as_ref()) {
            *errors.entry(failure.to_string()).or_insert(0) += 1;
        }
        let of_tenant = |tenant: usize| {
            let of_it = outcomes.iter().filter(move |outcome| outcome.tenant == tenant);
            TenantReport {
                tenant: tenant + 1,
                requests: of_it.clone().count(),
                failed: of_it.clone().filter(|o| o.failure.is_some()).count(),
                output_tokens_per_second: rate(output(Some(tenant))),
                times: Times::of(of_it),
            }
        };
        let is_good = |outcome: &&Outcome| {
            outcome.failure.is_none() && objectives.iter().all(|o| outcome.keeps(o))
        };
        let good = outcomes.iter().filter(is_good).count() as f64;
        let sent = outcomes.iter().map(|o| milliseconds(o.sent - o.due));
        Self {
            seconds,
            requests: outcomes.len(),
            failed: errors.values().sum(),
            errors,
            requests_per_second: rate(ended as f64),
            output_tokens_per_second: rate(output(None)),
            total_tokens_per_second: rate(output(None) + prompts),
            times: Times::of(outcomes.iter()),
            tenants: if tenants > 1 { (0..tenants).map(of_tenant).collect() } else { vec![] },
            goodput: (!objectives.is_empty()).then(|| Goodput {
                objectives: objectives.to_vec(),
                share: good / outcomes.len().max(1) as f64,
                requests_per_second: rate(good),
            }),
            client: Client {
                cpu_seconds: measured.client_cpu_seconds,
                cpu_share: measured.client_cpu_seconds.map(rate),
                lag: Percentiles::of(sent.collect()),
            },
            server: measured.server_cpu_seconds.map(|cpu_seconds| Server {
                cpu_seconds,
                cpu_ms_per_output_token: cpu_seconds * 1e3 / output(None),
            }),
        }
    }
}

/// Rows of the table.
impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ttft, tpot, itl, latency } = self;
        for (name, p) in [("TTFT", ttft), ("TPOT", tpot), ("ITL", itl), ("latency", latency)] {
            let show = |ms: f64| if ms.is_nan() { "-".into() } else { format!("{ms:.2}") };
            let (p50, p90, p99) = (show(p.p50), show(p.p90), show(p.p99));
            writeln!(f, "  {name:15} {p50:>10} {p90:>10} {p99:>10}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, requests, failed, .. } = self;
        writeln!(f, "{requests} requests in {seconds:.1} s, {failed} failed")?;
        for (error, count) in &self.errors {
            writeln!(f, "  {count:>8} x {error}")?;
        }
        writeln!(f, "requests/s        {:>10.2}", self.requests_per_second)?;
        writeln!(f, "output tokens/s   {:>10.1}", self.output_tokens_per_second)?;
        writeln!(f, "all tokens/s      {:>10.1}", self.total_tokens_per_second)?;
        if let Some(Goodput { share, requests_per_second, .. }) = &self.goodput {
            let percent = share * 100.0;
            writeln!(
                f,
                "within objectives {requests_per_second:>10.2} requests/s ({percent:.1} %)"
            )?;
        }
        writeln!(f, "{:17} {:>10} {:>10} {:>10}", "milliseconds", "p50", "p90", "p99")?;
        write!(f, "{}", self.times)?;
        for tenant in &self.tenants {
            let TenantReport { tenant, requests, failed, output_tokens_per_second, times } = tenant;
            writeln!(
                f,
                "tenant {tenant}: {requests} requests, {failed} failed, \
                 {output_tokens_per_second:.1} output tokens/s"
            )?;
            write!(f, "{times}")?;
        }
        if let Some(Server { cpu_seconds, cpu_ms_per_output_token }) = &self.server {
            writeln!(
                f,
                "server: {cpu_seconds:.2} s of processor time, \
                 {cpu_ms_per_output_token:.3} ms for an output token"
            )?;
        }
        let cpu = self.client.cpu_share.map_or("unknown".into(), |c| format!("{:.1} %", c * 100.0));
        write!(f, "client: {cpu} of a core, p99 of its own delay {:.2} ms", self.client.lag.p99)
    }
}
