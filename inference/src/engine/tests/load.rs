//! Whole loads in simulated time: what tenants and adapters get when there is not enough for all.

use super::harness::*;
use crate::adapters::AdapterManifest;
use lorikeet_compute::backend::cuda::check::Random;
use lorikeet_compute::backend::sim::{SimConfig, SimCost};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One request of a load.
#[derive(Clone)]
struct Arrival {
    /// Since the start.
    at: Duration,
    tenant: u8,
    adapter: Arc<AdapterManifest>,
    prompt: usize,
    output: u32,
}

#[derive(Debug, Clone, Copy)]
struct Timing {
    tenant: u8,
    arrived: Instant,
    first: Option<Instant>,
    ended: Option<Instant>,
    output: u32,
}

/// An engine under load. Steps are not checked: that is what property tests are for.
struct Load {
    rig: Rig,
    start: Instant,
    live: Vec<(usize, Reader)>,
    /// Of all requests that were taken.
    timings: Vec<Timing>,
    random: Random,
}

impl Load {
    fn new(setup: &Setup) -> Self {
        let rig = Rig::new(setup);
        let start = rig.clock.now();
        Self { rig, start, live: Vec::new(), timings: Vec::new(), random: Random::new(1) }
    }

    /// Refused when the queue is full, as the load then is.
    fn submit(&mut self, arrival: &Arrival) {
        let prompt: Vec<u32> =
            (0..arrival.prompt).map(|_| self.random.below(40_000) as u32).collect();
        let (request, reader) =
            request(arrival.tenant, Some(&arrival.adapter), &prompt, arrival.output);
        let arrived = self.start + arrival.at;
        if self.rig.handle.try_submit_at(request, arrived).is_err() {
            return;
        }
        self.live.push((self.timings.len(), reader));
        let Arrival { tenant, output, .. } = *arrival;
        self.timings.push(Timing { tenant, arrived, first: None, ended: None, output });
    }

    /// A step, or a wait when there is nothing to do. Returns how many requests ended.
    fn step(&mut self) -> usize {
        let clock = &self.rig.clock;
        if !self.rig.engine.step(clock.now()).unwrap() {
            clock.wait_until(clock.now() + Duration::from_micros(200));
        }
        let now = clock.now();
        let before = self.live.len();
        self.live.retain_mut(|(at, reader)| {
            reader.read();
            let timing = &mut self.timings[*at];
            if timing.first.is_none() && !reader.tokens.is_empty() {
                timing.first = Some(now);
            }
            timing.ended = reader.end.is_some().then_some(now);
            assert!(reader.error().is_none(), "{:?}", reader.end);
            reader.end.is_none()
        });
        before - self.live.len()
    }

    /// Requests come whether others have ended or not. All are served in the end.
    fn open_loop(mut self, arrivals: &[Arrival]) -> Vec<Timing> {
        let mut arrivals = arrivals.iter().peekable();
        while arrivals.peek().is_some() {
            let now = self.rig.clock.now();
            while let Some(arrival) = arrivals.next_if(|arrival| self.start + arrival.at <= now) {
                self.submit(arrival);
            }
            self.step();
        }
        while !self.live.is_empty() {
            self.step();
        }
        self.timings
    }

    /// So many requests at a time, each with the next adapter.
    fn closed_loop(mut self, clients: usize, count: usize, of: &[Arrival]) -> Vec<Timing> {
        let mut next = 0;
        let mut idle = clients;
        while next < count || !self.live.is_empty() {
            for _ in 0..idle.min(count - next) {
                let at = self.rig.clock.now() - self.start;
                self.submit(&Arrival { at, ..of[next % of.len()].clone() });
                next += 1;
            }
            idle = self.step();
        }
        self.timings
    }
}

/// Milliseconds to the first token at the 99th percentile.
fn ttft_p99<'a>(timings: impl Iterator<Item = &'a Timing>) -> f64 {
    let ttft = timings.filter_map(|timing| Some((timing.first? - timing.arrived).as_secs_f64()));
    let mut ttft: Vec<f64> = ttft.collect();
    ttft.sort_by(f64::total_cmp);
    ttft[ttft.len() * 99 / 100] * 1e3
}

/// Output tokens per second of the requests that ended in a window.
fn throughput(timings: &[Timing], from: Instant, to: Instant) -> f64 {
    let ended = timings.iter().filter(|t| t.ended.is_some_and(|at| from < at && at <= to));
    ended.map(|timing| f64::from(timing.output)).sum::<f64>() / (to - from).as_secs_f64()
}

/// 32 to 96 tokens in and out, at random times.
fn poisson(tenant: u8, rate: f64, seconds: f64) -> Vec<Arrival> {
    let adapter = adapter(tenant, tenant, 10);
    let mut random = Random::new(tenant.into());
    let mut at = 0.0;
    std::iter::from_fn(|| {
        let uniform = (random.below(1 << 30) + 1) as f64 / f64::from(1 << 30);
        at -= uniform.ln() / rate;
        (at < seconds).then(|| Arrival {
            at: Duration::from_secs_f64(at),
            tenant,
            adapter: adapter.clone(),
            prompt: 32 + random.below(65) as usize,
            output: 32 + random.below(65) as u32,
        })
    })
    .collect()
}

/// The defaults of a node, on a device at the pace of a small GPU.
fn node() -> Setup {
    let sim = SimConfig::default();
    Setup {
        capacity: sim.capacity,
        cost: sim.cost,
        max_requests: 512,
        context_length: 4096,
        sim: SimConfig { vocab_size: 49152, check_prefixes: false, ..Setup::default().sim },
        ..Setup::default()
    }
}

const QUIET: u8 = 1;
const BUSY: u8 = 2;

/// Open loop, at 1.65 times what the node can do: the quiet tenant asks for 0.15 of it, the busy one
/// for ten times as much.
#[test]
fn a_quiet_tenant_hardly_notices_a_busy_one_and_the_busy_one_gets_all_that_is_left() {
    const SECONDS: f64 = 40.0;
    let window =
        |load: &Load| [5.0, SECONDS - 1.0].map(|s| load.start + Duration::from_secs_f64(s));
    let setup = node();
    let load = Load::new(&setup);
    let [from, to] = window(&load);
    let full = throughput(&load.open_loop(&poisson(BUSY, 400.0, SECONDS)), from, to);
    // The mean output is 64 tokens.
    let quiet = poisson(QUIET, full / 64.0 * 0.15, SECONDS);
    let busy = poisson(BUSY, full / 64.0 * 1.5, SECONDS);
    let alone = ttft_p99(Load::new(&setup).open_loop(&quiet).iter());

    let mut both = [quiet, busy].concat();
    both.sort_by_key(|arrival| arrival.at);
    let load = Load::new(&setup);
    let [from, to] = window(&load);
    let timings = load.open_loop(&both);
    let beside = ttft_p99(timings.iter().filter(|timing| timing.tenant == QUIET));
    let total = throughput(&timings, from, to);
    println!(
        "quiet: TTFT p99 {alone:.1} ms alone, {beside:.1} ms beside; {total:.0} of {full:.0} tok/s"
    );
    assert!(beside <= 2.0 * alone, "{beside:.1} ms beside the busy one, {alone:.1} ms alone");
    assert!(total >= 0.97 * full, "{total:.0} of {full:.0} tok/s are used");
}

/// Adapters of 10 bytes each, wanted in turn by as many requests at a time; more than fit.
struct Overload {
    adapters: u8,
    room: u64,
    prompt: usize,
    output: u32,
    /// Requests, the first and the last of which are not counted.
    requests: usize,
    setup: Setup,
}

/// Over those of an engine on whose device all adapters fit.
#[derive(Debug)]
struct Kept {
    throughput: f64,
    ttft_p99: f64,
}

impl Overload {
    fn measure(&self) -> Kept {
        let (all_fit, some_fit) = (self.arm(u64::from(self.adapters)), self.arm(self.room));
        println!("(tok/s, TTFT p99 ms): {all_fit:.1?} when all fit, {some_fit:.1?} when some do");
        Kept { throughput: some_fit.0 / all_fit.0, ttft_p99: some_fit.1 / all_fit.1 }
    }

    fn arm(&self, room: u64) -> (f64, f64) {
        let mut setup = self.setup.clone();
        setup.capacity.adapter_bytes = 10 * room;
        setup.residency.quantum = crate::adapters::ResidencyConfig::default().quantum;
        let each = (1..=self.adapters).map(|id| Arrival {
            at: Duration::ZERO,
            tenant: 1,
            adapter: adapter(1, id, 10),
            prompt: self.prompt,
            output: self.output,
        });
        let clients = usize::from(self.adapters);
        let each: Vec<_> = each.collect();
        let timings = Load::new(&setup).closed_loop(clients, self.requests, &each);
        // From when the first of all have ended until the last have begun.
        let steady = &timings[4 * clients..self.requests - clients];
        let (from, to) = (steady[0].arrived, steady[steady.len() - 1].arrived);
        (throughput(&timings, from, to), ttft_p99(steady.iter()))
    }
}

/// At the pace of the CPU backend with SmolLM2-135M on two cores (docs/benchmarks.md).
#[test]
fn sixteen_adapters_with_room_for_eight_keep_most_of_the_throughput_and_their_first_tokens() {
    let cost = SimCost {
        step: Duration::from_millis(7),
        row: Duration::from_micros(550),
        adapter: Duration::from_micros(600),
        upload: Duration::from_millis(10),
    };
    let setup = Setup { cost, ..node() };
    let overload = Overload { adapters: 16, room: 8, prompt: 64, output: 64, requests: 480, setup };
    let kept = overload.measure();
    assert!(kept.throughput >= 0.65 && kept.ttft_p99 <= 3.0, "{kept:?}");
}

/// At the pace of an H100 with Llama-3.1-8B and adapters of rank 16 (docs/benchmarks.md), one step
/// ahead of the host.
#[test]
fn thirty_two_adapters_with_room_for_sixteen_keep_most_of_a_gpu() {
    let cost = SimCost {
        step: Duration::from_micros(6170),
        row: Duration::from_micros(20),
        adapter: Duration::from_micros(62),
        upload: Duration::from_micros(1900),
    };
    let mut setup = Setup { cost, ..node() };
    setup.capacity.pipeline_depth = 2;
    setup.capacity.num_blocks = 20_000;
    setup.scheduler.max_num_batched_tokens = 256;
    let overload =
        Overload { adapters: 32, room: 16, prompt: 512, output: 128, requests: 960, setup };
    let kept = overload.measure();
    assert!(kept.throughput >= 0.75 && kept.ttft_p99 <= 3.0, "{kept:?}");
}
