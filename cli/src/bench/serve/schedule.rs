//! Which request comes when. A function of the seed alone: neither the server nor the clock changes
//! what the i-th request is.

use std::f64::consts::TAU;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// What is common to all requests of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    pub seed: u64,
    /// One for each tenant: how often its turn comes, and how many models it asks for.
    pub tenants: Vec<Share>,
    pub pick: Pick,
    pub prompt_tokens: Lengths,
    pub output_tokens: Lengths,
    /// None: a request follows when another has ended.
    pub arrivals: Option<Arrivals>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub weight: u32,
    pub models: usize,
}

/// How a tenant's requests spread over its models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pick {
    RoundRobin,
    Uniform,
    /// The k-th model is asked for in proportion to `1 / k^exponent`.
    Zipf(f64),
}

/// Inclusive; drawn uniformly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths(RangeInclusive<u32>);

/// Gaps between arrivals are gamma distributed: shape `burstiness`, mean `1 / rate`. 1 is a Poisson
/// process, less comes in bursts, infinity is a steady beat (the convention of `vllm bench serve`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrivals {
    /// Per second.
    pub rate: f64,
    pub burstiness: f64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub index: u64,
    /// After the first; zero where requests follow one another.
    pub at: Duration,
    pub tenant: usize,
    /// Of that tenant's.
    pub model: usize,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    /// The prompt is drawn from it.
    pub prompt_seed: u64,
}

/// Endless.
pub struct Schedule {
    workload: Workload,
    random: Random,
    index: u64,
    at: f64,
    /// Requests of each tenant so far.
    turns: Vec<usize>,
    /// Each tenant's claim: the largest is next, and pays for it.
    credits: Vec<i64>,
}

impl Schedule {
    pub fn new(workload: Workload) -> Self {
        let tenants = workload.tenants.len();
        Self {
            random: Random::new(workload.seed),
            workload,
            index: 0,
            at: 0.0,
            turns: vec![0; tenants],
            credits: vec![0; tenants],
        }
    }

    /// Smooth weighted round robin: a heavy tenant's requests are spread, not bunched.
    fn next_tenant(&mut self) -> usize {
        let mut total = 0;
        let mut next = 0;
        for (tenant, share) in self.workload.tenants.iter().enumerate() {
            total += i64::from(share.weight);
            self.credits[tenant] += i64::from(share.weight);
            if self.credits[tenant] > self.credits[next] {
                next = tenant;
            }
        }
        self.credits[next] -= total;
        next
    }

    fn next_model(&mut self, tenant: usize) -> usize {
        let models = self.workload.tenants[tenant].models;
        let turn = self.turns[tenant];
        self.turns[tenant] += 1;
        match self.workload.pick {
            Pick::RoundRobin => turn % models,
            Pick::Uniform => self.random.below(models as u64) as usize,
            Pick::Zipf(exponent) => {
                let weight = |k: usize| 1.0 / ((k + 1) as f64).powf(exponent);
                let total: f64 = (0..models).map(weight).sum();
                let mut left = self.random.unit() * total;
                let drawn = (0..models).find(|&k| {
                    left -= weight(k);
                    left < 0.0
                });
                drawn.unwrap_or(models - 1)
            }
        }
    }
}

impl Iterator for Schedule {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        let index = self.index;
        self.index += 1;
        if let Some(arrivals) = self.workload.arrivals.filter(|_| index > 0) {
            self.at += arrivals.gap(&mut self.random);
        }
        let tenant = self.next_tenant();
        Some(Planned {
            index,
            at: Duration::from_secs_f64(self.at),
            tenant,
            model: self.next_model(tenant),
            prompt_tokens: self.workload.prompt_tokens.draw(&mut self.random),
            output_tokens: self.workload.output_tokens.draw(&mut self.random),
            prompt_seed: self.random.bits(),
        })
    }
}

impl Arrivals {
    /// Seconds.
    fn gap(self, random: &mut Random) -> f64 {
        let mean = 1.0 / self.rate;
        if self.burstiness.is_infinite() {
            return mean;
        }
        random.gamma(self.burstiness) / self.burstiness * mean
    }
}

impl Lengths {
    pub fn exactly(tokens: u32) -> Self {
        Self(tokens..=tokens)
    }

    fn draw(&self, random: &mut Random) -> u32 {
        let (start, end) = (*self.0.start(), *self.0.end());
        start + random.below(u64::from(end - start) + 1) as u32
    }
}

impl FromStr for Lengths {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "a number of tokens, or two as in 32..128, is wanted";
        let (start, end) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.parse().map_err(|_| WANTED);
        let (start, end): (u32, u32) = (number(start)?, number(end)?);
        if start == 0 || end < start {
            return Err(WANTED);
        }
        Ok(Self(start..=end))
    }
}

impl FromStr for Pick {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "round-robin" => Ok(Pick::RoundRobin),
            "uniform" => Ok(Pick::Uniform),
            "zipf" => Ok(Pick::Zipf(1.0)),
            other => match other.strip_prefix("zipf:").map(str::parse) {
                Some(Ok(exponent)) if f64::is_finite(exponent) => Ok(Pick::Zipf(exponent)),
                _ => Err("round-robin, uniform, zipf or zipf:EXPONENT is wanted"),
            },
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): a few lines that never change, so that a seed means the
/// same in every version.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let v = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let v = (v ^ (v >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        v ^ (v >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// In `0..1`.
    fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
    }

    /// Gamma distributed with scale 1 (Marsaglia and Tsang, 2000).
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = (1.0 - self.unit()).powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload {
            seed: 7,
            tenants: vec![Share { weight: 1, models: 4 }],
            pick: Pick::Uniform,
            prompt_tokens: "32..128".parse().expect("a range"),
            output_tokens: "64".parse().expect("a number"),
            arrivals: Some(Arrivals { rate: 50.0, burstiness: 1.0 }),
        }
    }

    fn first(workload: Workload, count: usize) -> Vec<Planned> {
        Schedule::new(workload).take(count).collect()
    }

    #[test]
    fn a_seed_means_one_schedule() {
        let planned = first(workload(), 500);
        assert_eq!(planned, first(workload(), 500));
        assert_ne!(planned, first(Workload { seed: 8, ..workload() }, 500));
        assert!(planned.iter().all(|p| (32..=128).contains(&p.prompt_tokens)));
        assert!(planned.iter().all(|p| p.output_tokens == 64 && p.model < 4));
        // Pinned: another value would mean that old results can no longer be repeated.
        assert_eq!((planned[1].at.as_micros(), planned[1].prompt_seed % 1000), (13_397, 83));
    }

    /// Mean and variance of gaps, in units of the mean and of its square.
    fn gaps(burstiness: f64) -> (f64, f64) {
        let arrivals = Some(Arrivals { rate: 50.0, burstiness });
        let times: Vec<f64> = first(Workload { arrivals, ..workload() }, 20_001)
            .iter()
            .map(|planned| planned.at.as_secs_f64() * 50.0)
            .collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        (mean, gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64)
    }

    #[test]
    fn arrivals_have_the_rate_and_the_burstiness_that_was_asked_for() {
        for burstiness in [0.25, 1.0, 4.0, f64::INFINITY] {
            let (mean, variance) = gaps(burstiness);
            assert!((mean - 1.0).abs() < 0.05, "{burstiness}: mean {mean}");
            let wanted = 1.0 / burstiness;
            assert!((variance - wanted).abs() <= 0.1 * wanted + 1e-6, "{burstiness}: {variance}");
        }
    }

    #[test]
    fn models_are_picked_in_turn_or_by_their_rank() {
        let counts = |pick| {
            let mut counts = [0_i32; 4];
            let planned = first(Workload { pick, ..workload() }, 12_000);
            planned.iter().for_each(|p| counts[p.model] += 1);
            counts
        };
        assert_eq!(counts(Pick::RoundRobin), [3000; 4]);
        assert!(counts(Pick::Uniform).iter().all(|c| (2800..3200).contains(c)));
        // 1 + 1/2 + 1/3 + 1/4 is 25/12.
        let zipf = counts("zipf".parse().expect("a pick"));
        for (count, wanted) in zipf.into_iter().zip([5760, 2880, 1920, 1440]) {
            assert!((count - wanted).abs() < 250, "{zipf:?}");
        }
    }

    #[test]
    fn tenants_come_as_often_as_their_weights_say_and_never_in_a_bunch() {
        let tenants = [1, 10].map(|weight| Share { weight, models: 1 }).to_vec();
        let planned = first(Workload { tenants, ..workload() }, 110);
        for round in planned.chunks(11) {
            assert_eq!(round.iter().filter(|p| p.tenant == 0).count(), 1);
        }
    }

    #[test]
    fn what_is_no_length_and_no_pick_is_refused() {
        for text in ["", "0", "x", "9..3", "1..x"] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
        for text in ["", "zipf:", "zipf:nan", "random"] {
            assert!(text.parse::<Pick>().is_err(), "{text}");
        }
    }
}
