//! `lorikeet bench compare`: this node and llama-server in turn, case by case, so that a machine
//! that drifts drifts for both.

use super::machine::Setting;
use super::median;
use super::serve::api::{Api, BodyOptions};
use super::serve::load::{Length, Pace, Run};
use super::serve::report::Report;
use super::serve::request::{self, Target, Tenant};
use super::serve::schedule::{Lengths, Pick, Share, Workload};
use anyhow::{Context, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Adapters of the mixed case: request i uses adapter i mod 8.
const MIXED: usize = 8;
/// The case that also has a bar for the p99 of the time to the first token: a tenth of the peer's.
const WAITS: Case = Case { mix: Mix::Adapters, concurrency: 16 };
const MOST_WAIT: f64 = 0.1;

#[derive(clap::Args)]
#[command(
    after_help = "scripts/compare-llama-server starts all servers and calls this. By hand:\n  \
    lorikeet bench compare --api-key lk_live_... --base base --adapter a0,a1,a2,a3,a4,a5,a6,a7 \\\n    \
    --peer split=http://127.0.0.1:8080 --peer unified=http://127.0.0.1:8081"
)]
pub struct Args {
    /// This node
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7710/v1")]
    base_url: String,
    #[arg(long, env = "LORIKEET_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: String,
    /// This node's base model
    #[arg(long, value_name = "NAME")]
    base: String,
    /// This node's adapters; the peer's are its numbers from 0
    #[arg(long = "adapter", value_name = "NAME", value_delimiter = ',', required = true)]
    adapters: Vec<String>,
    /// A llama-server with as many adapters; of several, the better one counts
    #[arg(long = "peer", value_name = "NAME=URL", required = true)]
    peers: Vec<Peer>,
    /// A: the base model, B: one adapter, C: eight adapters in turn; and requests at a time
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    #[arg(default_value = "A1,A4,A8,A16,B16,C4,C8,C16")]
    cases: Vec<Case>,
    #[arg(long, value_name = "N", default_value_t = 3)]
    repetitions: u64,
    #[arg(long, value_name = "N", default_value = "64")]
    prompt_tokens: Lengths,
    #[arg(long, value_name = "N", default_value = "64")]
    output_tokens: Lengths,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone)]
struct Peer {
    name: String,
    url: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    mix: Mix,
    concurrency: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    Base,
    OneAdapter,
    Adapters,
}

impl Case {
    fn name(self) -> String {
        let letter = match self.mix {
            Mix::Base => 'A',
            Mix::OneAdapter => 'B',
            Mix::Adapters => 'C',
        };
        format!("{letter}{}", self.concurrency)
    }

    /// Least ratio of output tokens per second.
    fn bar(self) -> Option<f64> {
        match (self.mix, self.concurrency) {
            (Mix::Base, 1) => Some(1.0),
            (Mix::Base, 4 | 8) => Some(1.4),
            (Mix::Base, 16) => Some(1.5),
            (Mix::OneAdapter, 16) => Some(1.7),
            (Mix::Adapters, 4) => Some(2.5),
            (Mix::Adapters, 8 | 16) => Some(4.0),
            _ => None,
        }
    }
}

impl FromStr for Case {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "A, B or C and a number of requests are wanted, as in C16";
        let mix = match text.get(..1) {
            Some("A") => Mix::Base,
            Some("B") => Mix::OneAdapter,
            Some("C") => Mix::Adapters,
            _ => return Err(WANTED),
        };
        match text[1..].parse() {
            Ok(concurrency) if concurrency > 0 => Ok(Self { mix, concurrency }),
            _ => Err(WANTED),
        }
    }
}

impl FromStr for Peer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, url) = text.split_once('=').ok_or("NAME=URL is wanted")?;
        Ok(Self { name: name.into(), url: url.trim_end_matches('/').into() })
    }
}

/// One of the servers, and what its models are called.
struct Server {
    name: String,
    http: reqwest::Client,
    api: Api,
    base_url: String,
    key: Option<String>,
    base: String,
    adapters: Vec<String>,
}

/// One server's measurements of one case.
#[derive(Default, Serialize)]
struct Cell {
    tokens_per_second: Vec<f64>,
    ttft_p50: Vec<f64>,
    ttft_p99: Vec<f64>,
}

#[derive(Serialize)]
struct Row {
    case: String,
    cells: BTreeMap<String, Cell>,
    /// Of tokens per second, over the better peer.
    ratio: f64,
    bar: Option<f64>,
    /// Of the p99 to the first token, over the better peer's.
    ttft_p99_ratio: f64,
    is_met: bool,
}

#[derive(Serialize)]
struct Document {
    setting: Setting,
    rows: Vec<Row>,
}

const OURS: &str = "lorikeet";

pub async fn run(args: Args) -> anyhow::Result<()> {
    let setting = Setting::new(None);
    let servers = servers(&args)?;
    if let Some(ours) = servers.first() {
        ours.wake(&args).await.with_context(|| ours.name.clone())?;
    }
    let mut cells: Vec<BTreeMap<String, Cell>> = Vec::new();
    cells.resize_with(args.cases.len(), BTreeMap::new);
    for repetition in 0..args.repetitions {
        for (case, cells) in args.cases.iter().zip(&mut cells) {
            for server in &servers {
                let requests = (2 * case.concurrency as u64).max(4);
                let seed = args.seed + 1000 * repetition + case.concurrency as u64;
                let models = server.models(case.mix);
                let length = Length::Requests(requests);
                let report = server.measure(&args, models, case.concurrency, length, seed).await?;
                eprintln!(
                    "{:4} {:12} {:8.1} tokens/s, TTFT p50 {:6.0} ms, p99 {:6.0} ms",
                    case.name(),
                    server.name,
                    report.output_tokens_per_second,
                    report.times.ttft.p50,
                    report.times.ttft.p99,
                );
                let cell = cells.entry(server.name.clone()).or_default();
                cell.tokens_per_second.push(report.output_tokens_per_second);
                cell.ttft_p50.push(report.times.ttft.p50);
                cell.ttft_p99.push(report.times.ttft.p99);
            }
        }
    }
    let rows: Vec<Row> = args.cases.iter().zip(cells).map(|(case, c)| Row::new(*case, c)).collect();
    print(&rows, &servers);
    let missed: Vec<String> = rows.iter().filter(|r| !r.is_met).map(|r| r.case.clone()).collect();
    super::save(args.json.as_deref(), &Document { setting, rows })?;
    if !missed.is_empty() {
        bail!("below the bar: {}", missed.join(", "));
    }
    Ok(())
}

fn servers(args: &Args) -> reqwest::Result<Vec<Server>> {
    let ours = Server {
        name: OURS.into(),
        http: request::client(Api::Completions)?,
        api: Api::Completions,
        base_url: args.base_url.trim_end_matches('/').into(),
        key: Some(args.api_key.clone()),
        base: args.base.clone(),
        adapters: args.adapters.clone(),
    };
    let peers = args.peers.iter().map(|peer| {
        Ok(Server {
            name: peer.name.clone(),
            http: request::client(Api::LlamaServer)?,
            api: Api::LlamaServer,
            base_url: peer.url.clone(),
            key: None,
            base: "base".into(),
            adapters: (0..args.adapters.len()).map(|id| id.to_string()).collect(),
        })
    });
    [Ok(ours)].into_iter().chain(peers).collect()
}

impl Server {
    fn models(&self, mix: Mix) -> Vec<String> {
        match mix {
            Mix::Base => vec![self.base.clone()],
            Mix::OneAdapter => self.adapters[..1].to_vec(),
            Mix::Adapters => self.adapters[..self.adapters.len().min(MIXED)].to_vec(),
        }
    }

    /// Asks once for everything, so that nothing is loaded while it is measured. The peer has loaded
    /// its adapters before it answers at all.
    async fn wake(&self, args: &Args) -> anyhow::Result<()> {
        let models = [self.models(Mix::Base), self.adapters.clone()].concat();
        let requests = Length::Requests(models.len() as u64);
        self.measure(args, models, 1, requests, !args.seed).await.map(drop)
    }

    async fn measure(
        &self,
        args: &Args,
        models: Vec<String>,
        concurrency: usize,
        length: Length,
        seed: u64,
    ) -> anyhow::Result<Report> {
        let workload = Workload {
            seed,
            tenants: vec![Share { weight: 1, models: models.len() }],
            pick: Pick::RoundRobin,
            prompt_tokens: args.prompt_tokens.clone(),
            output_tokens: args.output_tokens.clone(),
            arrivals: None,
        };
        let target = Target {
            http: self.http.clone(),
            api: self.api,
            base_url: self.base_url.clone(),
            tenants: vec![Tenant { key: self.key.clone(), models }],
            options: BodyOptions { temperature: 0.0, ignore_eos: true },
            timeout: Duration::from_secs(300),
        };
        let run = Run {
            target: Arc::new(target),
            workload,
            pace: Pace::Concurrency(concurrency),
            warm_up: Duration::ZERO,
            length,
            server: None,
        };
        let report = Report::new(&run.measure().await, 1, &[]);
        if report.failed > 0 {
            bail!("{} failed {} requests: {:?}", self.name, report.failed, report.errors);
        }
        Ok(report)
    }
}

impl Row {
    fn new(case: Case, cells: BTreeMap<String, Cell>) -> Self {
        let of_peers = |value: fn(&Cell) -> f64| {
            cells.iter().filter(|(name, _)| *name != OURS).map(move |(_, cell)| value(cell))
        };
        let ours = &cells[OURS];
        let speed = |cell: &Cell| median(cell.tokens_per_second.iter().copied());
        let wait = |cell: &Cell| median(cell.ttft_p99.iter().copied());
        let ratio = speed(ours) / of_peers(speed).fold(0.0, f64::max);
        let ttft_p99_ratio = wait(ours) / of_peers(wait).fold(f64::INFINITY, f64::min);
        let is_fast = case.bar().is_none_or(|bar| ratio >= bar);
        let is_prompt = case != WAITS || ttft_p99_ratio <= MOST_WAIT;
        Self {
            case: case.name(),
            cells,
            ratio,
            bar: case.bar(),
            ttft_p99_ratio,
            is_met: is_fast && is_prompt,
        }
    }
}

fn print(rows: &[Row], servers: &[Server]) {
    print!("{:5}", "case");
    for server in servers {
        print!(" {:>26}", server.name);
    }
    println!(" {:>7} {:>5} {:>10}", "ratio", "bar", "TTFT p99");
    print!("{:5}", "");
    for _ in servers {
        print!(" {:>26}", "tokens/s  TTFT p50 / p99 ms");
    }
    println!(" {:>7} {:>5} {:>10}", "", "", "ratio");
    for row in rows {
        print!("{:5}", row.case);
        for server in servers {
            let cell = &row.cells[&server.name];
            let speed = median(cell.tokens_per_second.iter().copied());
            let (p50, p99) =
                (median(cell.ttft_p50.iter().copied()), median(cell.ttft_p99.iter().copied()));
            print!(" {:>26}", format!("{speed:.1}  {p50:.0} / {p99:.0}"));
        }
        let bar = row.bar.map_or(String::new(), |bar| format!("{bar:.1}"));
        let verdict = if row.is_met { "" } else { "  missed" };
        println!(" {:>7.2} {bar:>5} {:>10.3}{verdict}", row.ratio, row.ttft_p99_ratio);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(speeds: &[f64], wait: f64) -> Cell {
        let waits = vec![wait; speeds.len()];
        Cell { tokens_per_second: speeds.to_vec(), ttft_p50: waits.clone(), ttft_p99: waits }
    }

    fn row(ours: Cell) -> Row {
        let cells =
            [(OURS, ours), ("split", cell(&[60.0], 900.0)), ("unified", cell(&[80.0], 700.0))];
        Row::new(WAITS, cells.map(|(name, cell)| (name.to_owned(), cell)).into())
    }

    #[test]
    fn the_better_peer_counts_in_speed_and_in_waiting_and_the_middle_run_of_each() {
        let good = row(cell(&[900.0, 320.0, 10.0], 70.0));
        assert_eq!((good.ratio, good.ttft_p99_ratio, good.is_met), (4.0, 0.1, true));
        assert!(!row(cell(&[319.0], 70.0)).is_met, "too slow");
        assert!(!row(cell(&[400.0], 71.0)).is_met, "waits too long");
    }

    #[test]
    fn cases_are_read_as_they_are_written() {
        for text in ["A1", "B16", "C8"] {
            assert_eq!(text.parse::<Case>().expect("a case").name(), text);
        }
        for text in ["", "D4", "C", "C0", "É1"] {
            assert!(text.parse::<Case>().is_err(), "{text}");
        }
    }
}
