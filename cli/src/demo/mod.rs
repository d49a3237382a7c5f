//! `lorikeet demo`: the whole system on one machine, each part a process of its own.
//!
//! ```text
//! postgres ─ migrate ─ control-plane ─ seed through the public API ─ print what to try
//! s3 ──────────────────┘
//! node ────────────────┘
//! ```

mod death_signal;
mod facts;
mod home;
mod leftovers;
mod parts;
pub mod ports;
pub mod postgres;
mod process;
pub mod s3;
mod seed;
mod state;

use crate::{ENGINE_STOPPED, cache, nodes, signals};
use anyhow::{Context, bail};
use facts::Facts;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use home::{Home, write_private};
use lorikeet_control_plane::{create_operator, migrate};
use parts::Parts;
use ports::Ports;
use postgres::Cluster;
use process::Process;
use seed::Seeding;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use state::State;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The trained adapters, from a checkout's root.
const KIT: &str = "tests/kit/data";

/// Initialising a cluster, or loading a model, on a slow and busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Before a node whose engine has stopped is started again, which may not help.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
pub struct Args {
    /// Where everything is kept [default: /var/lib/lorikeet for root, else the user's data directory]
    #[arg(long, env = "LORIKEET_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    ports: Ports,
    /// A GGUF file or a Hugging Face directory [default: the model that scripts/fetch-model fetches]
    #[arg(long, env = "LORIKEET_MODEL", value_name = "PATH")]
    model: Option<PathBuf>,
    /// The directory of PostgreSQL's programs [default: looked for]
    #[arg(long, env = "LORIKEET_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
    /// The directory whose adapters/NAME are uploaded for the two tenants [default: the checkout's
    /// tests/kit/data]
    #[arg(long, env = "LORIKEET_KIT", value_name = "DIR")]
    kit: Option<PathBuf>,
    /// Delete everything that an earlier demo kept, and start over
    #[arg(long)]
    reset: bool,
    /// Do not ask before deleting
    #[arg(long, requires = "reset")]
    yes: bool,
}

/// Call it on the main thread of a current-thread runtime: parts are tied to the thread that starts
/// them (see `death_signal`).
pub async fn run(args: Args) -> anyhow::Result<()> {
    let shutdown = signals::shutdown()?;
    let home = Home::open(&data_directory(args.data.as_deref())?)?;
    let demo = Demo {
        started: Instant::now(),
        program: std::env::current_exe().context("where is this program?")?,
        model: model(args.model.as_deref())?,
        cluster: Cluster::new(&Parts::postgres_dir(&home))?,
        home,
        args,
    };
    demo.prepare().await?;
    let mut running = Vec::new();
    let mut outcome = tokio::select! {
        up = demo.start(&mut running) => up.map(Some),
        () = shutdown.cancelled() => Ok(None),
    };
    if let Ok(Some(facts)) = &mut outcome {
        demo.watch(facts, &mut running, &shutdown).await;
    }
    let stopped = demo.stop(&mut running).await;
    outcome?;
    stopped
}

struct Demo {
    args: Args,
    home: Home,
    cluster: Cluster,
    program: PathBuf,
    model: PathBuf,
    started: Instant,
}

impl Demo {
    /// Ends what an earlier demo left, resets when asked to, and finds the ports free.
    async fn prepare(&self) -> anyhow::Result<()> {
        let left = leftovers::stop(self.home.dir()).await;
        let left = left + usize::from(self.cluster.stop_leftover()?);
        if left > 0 {
            eprintln!("ended {left} parts that an earlier demo had left");
        }
        if self.args.reset {
            reset(&self.home, self.args.yes)?;
        }
        self.remove_facts()?;
        self.args.ports.check_free()?;
        for name in ["logs", "node", "s3"] {
            self.home.private_dir(name)?;
        }
        Ok(())
    }

    /// Starts all parts, seeds the two tenants, and says what there is to try.
    async fn start(&self, running: &mut Vec<Process>) -> anyhow::Result<Facts> {
        eprintln!("Lorikeet demo in {}", self.home.dir().display());
        let mut state = State::load_or_create(&self.home)?;
        let parts = self.parts(&state);
        let (dashboard_url, api_base_url) = (parts.dashboard_url(), parts.api_base_url());
        let metrics_urls = parts.metrics_urls();
        self.start_parts(&parts, running).await?;
        let adapters = kit(self.args.kit.as_deref()).join("adapters");
        let seeding = Seeding { home: &self.home, url: &dashboard_url, adapters: &adapters };
        seeding.run(&mut state).await?;

        let facts = Facts::new(dashboard_url, api_base_url, metrics_urls, &state, running);
        facts.save(&self.home)?;
        writeln!(
            std::io::stdout(),
            "{facts}Facts for scripts: {}\nLogs: {}\n\
             Up in {:.1} s. Ctrl-C stops everything; the next start keeps it all.",
            Facts::file(&self.home).display(),
            self.home.path("logs").display(),
            self.started.elapsed().as_secs_f64()
        )?;
        Ok(facts)
    }

    /// Starts a node again whose engine has stopped. Any other part that ends is said once, and left:
    /// whoever killed it can start it from demo.json.
    async fn watch(
        &self,
        facts: &mut Facts,
        running: &mut [Process],
        shutdown: &CancellationToken,
    ) {
        let mut watched: Vec<usize> = (0..running.len()).collect();
        while let Some((at, status)) = next_end(running, &watched, shutdown).await {
            let name = running[at].spec.name;
            let is_restarted = match status {
                Ok(status) if status.code() == Some(ENGINE_STOPPED.into()) => {
                    eprintln!("{name}: its engine stopped; it is started again");
                    tokio::time::sleep(RESTART_PAUSE).await;
                    self.restart(facts, &mut running[at])
                        .inspect_err(|e| eprintln!("{name}: {e:#}"))
                        .is_ok()
                }
                Ok(status) => {
                    eprintln!("{name} ended ({status}); demo.json tells how to start it again");
                    false
                }
                Err(error) => {
                    eprintln!("{name} is out of sight: {error}");
                    false
                }
            };
            watched.retain(|other| is_restarted || *other != at);
        }
    }

    fn restart(&self, facts: &mut Facts, process: &mut Process) -> anyhow::Result<()> {
        *process = Process::start(process.spec.clone())?;
        facts.restarted(process);
        facts.save(&self.home)
    }

    /// Side by side where they can: only the control plane needs others to be up.
    async fn start_parts(
        &self,
        parts: &Parts<'_>,
        running: &mut Vec<Process>,
    ) -> anyhow::Result<()> {
        self.write_node_token(parts.state)?;
        for spec in [parts.postgres()?, parts.s3()?, parts.node()?] {
            running.push(Process::start(spec)?);
        }
        let admin: PgConnectOptions = self.cluster.url("postgres", "postgres").parse()?;
        ready(&mut running[0], async || admin.connect().await.is_ok()).await?;
        let owner = admin.clone().database("lorikeet");
        migrate(&owner).await?;
        let operator = &parts.state.operator;
        create_operator(&owner, &operator.email, &operator.password).await?;

        let http = reqwest::Client::builder().timeout(ANSWERS_WITHIN).build()?;
        let s3 = parts.s3_url();
        // Any answer will do: without a signature it is a refusal.
        ready(&mut running[1], async || http.get(&s3).send().await.is_ok()).await?;
        running.push(Process::start(parts.control_plane()?)?);
        let service = format!("{}/api/v1/service", parts.dashboard_url());
        ready(&mut running[3], async || answers(&http, &service).await).await?;
        let node = format!("{}/ready", parts.node_url());
        ready(&mut running[2], async || answers(&http, &node).await).await
    }

    /// Node first, so that its usage still arrives; PostgreSQL last.
    async fn stop(&self, running: &mut [Process]) -> anyhow::Result<()> {
        eprintln!("stopping");
        self.remove_facts()?;
        for name in ["node", "control-plane", "s3"] {
            for process in running.iter_mut().filter(|process| process.spec.name == name) {
                process.stop().await?;
            }
        }
        leftovers::stop(self.home.dir()).await;
        for process in running {
            process.stop().await?;
        }
        self.cluster.stop_leftover()?;
        Ok(())
    }

    fn parts<'a>(&'a self, state: &'a State) -> Parts<'a> {
        Parts {
            home: &self.home,
            state,
            ports: &self.args.ports,
            program: &self.program,
            model: &self.model,
            postgres_bin: self.args.postgres_bin.as_deref(),
            database_url: self.cluster.url("lk_app", "lorikeet"),
        }
    }

    fn write_node_token(&self, state: &State) -> anyhow::Result<()> {
        let key = self.home.path("node-signing-key.pem");
        let token = nodes::issue(&key, state.node, "demo", nodes::YEAR)?;
        write_private(&self.home.path("node-token"), token.as_bytes())
    }

    /// A script that waits for demo.json must not find an earlier run's.
    fn remove_facts(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(Facts::file(&self.home)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context("cannot remove demo.json"),
            _ => Ok(()),
        }
    }
}

async fn ready(process: &mut Process, probe: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    process.until(READY_WITHIN, probe).await?;
    eprintln!("  {:<14} ready (pid {})", process.spec.name, process.pid);
    Ok(())
}

async fn answers(http: &reqwest::Client, url: &str) -> bool {
    http.get(url).send().await.is_ok_and(|response| response.status().is_success())
}

/// The next of the watched parts to end, by its place, and how it did. None at the demo's own end.
async fn next_end(
    running: &mut [Process],
    watched: &[usize],
    shutdown: &CancellationToken,
) -> Option<(usize, std::io::Result<ExitStatus>)> {
    let watched = running.iter_mut().enumerate().filter(|(at, _)| watched.contains(at));
    let end = async |(at, process): (usize, &mut Process)| (at, process.ended().await);
    let mut ends: FuturesUnordered<_> = watched.map(end).collect();
    tokio::select! {
        () = shutdown.cancelled() => None,
        Some(end) = ends.next() => Some(end),
    }
}

fn data_directory(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    given.map_or_else(Home::default_dir, |dir| Ok(dir.to_owned()))
}

/// That a demo could keep its data there, without creating anything. Returns the directory.
pub fn check_data_directory(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let dir = std::path::absolute(data_directory(given)?)?;
    let existing = dir.ancestors().find(|path| path.exists()).context("/ exists")?;
    if !existing.is_dir() {
        bail!("{} is not a directory", existing.display());
    }
    rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)
        .with_context(|| format!("{} cannot be written to", existing.display()))?;
    Cluster::new(&dir.join("postgres"))?.check_reachable(existing)?;
    Ok(dir)
}

/// In the checkout that the demo is started in, or that its program lies in; else in the one that this
/// was built from, which is another's where checkouts have their build directory in common.
fn kit(given: Option<&Path>) -> PathBuf {
    if let Some(given) = given {
        return given.to_owned();
    }
    let places = [std::env::current_dir(), std::env::current_exe()];
    let above = places.iter().flatten().flat_map(|place| place.ancestors());
    let found = above.map(|dir| dir.join(KIT)).find(|kit| kit.is_dir());
    found.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(KIT))
}

fn model(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = given.map_or_else(cache::model, |path| Ok(path.to_owned()))?;
    if !path.exists() {
        bail!("no model at {}: run scripts/fetch-model, or name one with --model", path.display());
    }
    std::path::absolute(&path).with_context(|| path.display().to_string())
}

fn reset(home: &Home, sure: bool) -> anyhow::Result<()> {
    if home.is_new() {
        return Ok(());
    }
    if !sure {
        if !std::io::stdin().is_terminal() {
            bail!("--reset deletes everything in {}: add --yes", home.dir().display());
        }
        eprint!("Delete all accounts, adapters and usage in {}? [y/N] ", home.dir().display());
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing was deleted");
        }
    }
    home.clear()
}
