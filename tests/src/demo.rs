//! `lorikeet demo` under test.

use anyhow::{Context, Result, bail, ensure};
use lorikeet_kit::ReservedPort;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long the first start of a demo may take on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(180);
/// How long one killed part may take to answer again.
const RESTART_LIMIT: Duration = Duration::from_secs(60);

/// What `demo.json` says.
#[derive(Debug, Clone, Deserialize)]
pub struct Facts {
    pub api_base_url: String,
    pub dashboard_url: String,
    pub operator: Login,
    pub tenants: Vec<Tenant>,
    pub processes: Vec<Process>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Login {
    pub email: String,
    pub password: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Tenant {
    pub name: String,
    pub email: String,
    pub password: String,
    pub api_key: String,
    pub manage_key: String,
    pub adapters: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Process {
    pub name: String,
    pub pid: i32,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
}

/// A running demo. Dropping it stops everything.
pub struct Demo {
    child: Child,
    /// Parts that were restarted here, by name.
    restarted: BTreeMap<String, Child>,
    dir: tempfile::TempDir,
    /// Its parts listen on them, also when they are started again.
    ports: Vec<ReservedPort>,
    pub facts: Facts,
}

impl Demo {
    /// A fresh one on free ports.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lk-").tempdir()?;
        Self::start_in(dir).await
    }

    /// A fresh one, with some variables of its own.
    pub async fn start_with(vars: &[(&str, &str)]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lk-").tempdir()?;
        Self::start_in_with(dir, vars).await
    }

    async fn start_in(dir: tempfile::TempDir) -> Result<Self> {
        Self::start_in_with(dir, &[]).await
    }

    async fn start_in_with(dir: tempfile::TempDir, vars: &[(&str, &str)]) -> Result<Self> {
        let log = std::fs::File::create(dir.path().join("demo.log"))?;
        let mut command = Command::new(binary()?);
        command.arg("demo").arg("--data").arg(dir.path().join("data"));
        let mut ports = Vec::new();
        for flag in [
            "--control-plane-port",
            "--node-port",
            "--s3-port",
            "--grpc-port",
            "--control-plane-metrics-port",
            "--node-metrics-port",
        ] {
            let port = ReservedPort::new()?;
            command.arg(flag).arg(port.number().to_string());
            ports.push(port);
        }
        let child = command
            .envs(vars.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting `lorikeet demo`")?;
        let mut demo =
            Self { child, restarted: BTreeMap::new(), facts: Facts::unknown(), dir, ports };
        let started = Instant::now();
        loop {
            if let Some(status) = demo.child.try_wait()? {
                bail!("`lorikeet demo` ended with {status}:\n{}", demo.log());
            }
            if let Ok(facts) = demo.read_facts()
                && demo.log().contains(&facts.dashboard_url)
            {
                demo.facts = facts;
                return Ok(demo);
            }
            ensure!(started.elapsed() < START_LIMIT, "the demo did not start:\n{}", demo.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn read_facts(&self) -> Result<Facts> {
        Ok(serde_json::from_slice(&std::fs::read(self.data().join("demo.json"))?)?)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Everything that the demo and its parts printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("demo.log")).unwrap_or_default()
    }

    pub fn tenant(&self, name: &str) -> &Tenant {
        self.facts.tenants.iter().find(|t| t.name == name).expect("a seeded tenant")
    }

    pub fn process(&self, name: &str) -> Result<&Process> {
        let names = || self.facts.processes.iter().map(|p| p.name.as_str()).collect::<Vec<_>>();
        self.facts
            .processes
            .iter()
            .find(|p| p.name == name)
            .with_context(|| format!("no process {name} among {:?}", names()))
    }

    /// Waits until the demo itself has given a part another process, and knows that one then.
    pub async fn until_restarted(&mut self, name: &str) -> Result<()> {
        let (before, started) = (self.process(name)?.pid, Instant::now());
        while started.elapsed() < RESTART_LIMIT {
            // It is written over while we read.
            if let Ok(facts) = self.read_facts() {
                self.facts = facts;
            }
            if self.process(name)?.pid != before {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("{name} was not started again:\n{}", self.log())
    }

    /// `kill -9`, now.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        if let Some(mut child) = self.restarted.remove(name) {
            child.kill()?;
            child.wait()?;
            return Ok(());
        }
        let pid = Pid::from_raw(self.process(name)?.pid).context("a pid")?;
        kill_process(pid, Signal::KILL).with_context(|| format!("killing {name}"))
    }

    /// Starts a killed part again from the argv and environment that `demo.json` gives.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let process = self.process(name)?.clone();
        let (program, args) = process.argv.split_first().context("an argv")?;
        let log = std::fs::File::options().append(true).open(self.dir.path().join("demo.log"))?;
        let child = Command::new(program)
            .args(args)
            .env_clear()
            .envs(&process.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("restarting {name}"))?;
        self.restarted.insert(name.to_owned(), child);
        Ok(())
    }

    /// Restarts a part with other settings.
    pub fn restart_with(&mut self, name: &str, variables: &[(&str, &str)]) -> Result<()> {
        self.kill(name)?;
        let parts = self.facts.processes.iter_mut();
        for part in parts.filter(|part| part.name == name) {
            let set = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            part.env.extend(set);
        }
        self.restart(name)
    }

    /// Sends SIGTERM to a part that was restarted here.
    pub fn terminate(&self, name: &str) -> Result<()> {
        let child =
            self.restarted.get(name).with_context(|| format!("{name} was not restarted"))?;
        let pid = Pid::from_raw(child.id().try_into()?).context("a pid")?;
        kill_process(pid, Signal::TERM).with_context(|| format!("ending {name}"))
    }

    /// How a part that was restarted here has ended, once it has.
    pub async fn ended(&mut self, name: &str) -> Result<ExitStatus> {
        let child = self.restarted.get_mut(name).context("it was not restarted")?;
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            ensure!(started.elapsed() < RESTART_LIMIT, "{name} did not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Another node beside the demo's own, with an identity, a port and a directory of its own, reading
    /// the same manifest. Returns its `/v1` address once it is ready.
    pub async fn add_node(&mut self, name: &str) -> Result<String> {
        self.add_node_with(name, &[]).await
    }

    /// The same, with some variables of its own.
    pub async fn add_node_with(&mut self, name: &str, vars: &[(&str, &str)]) -> Result<String> {
        let mut node = self.process("node")?.clone();
        let key = self.process("control-plane")?.env.get("LORIKEET_NODE_SIGNING_KEY").cloned();
        let token = self.dir.path().join(format!("{name}.token"));
        let issued = Command::new(binary()?)
            .args(["nodes", "token", "--name", name])
            .arg("--node-signing-key")
            .arg(key.context("the control plane's signing key")?)
            .arg("--out")
            .arg(&token)
            .output()?;
        ensure!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
        let port = ReservedPort::new()?;
        let address = format!("127.0.0.1:{}", port.number());
        self.ports.push(port);
        let url = format!("http://{address}/v1");
        let path = |path: &Path| path.display().to_string();
        for (variable, value) in [
            ("LORIKEET_NODE_NAME", name.to_owned()),
            ("LORIKEET_NODE_TOKEN_FILE", path(&token)),
            ("LORIKEET_NODE_DATA", path(&self.dir.path().join(name))),
            ("LORIKEET_NODE_LISTEN", address),
            ("LORIKEET_METRICS_LISTEN", "off".into()),
            ("LORIKEET_PUBLIC_API_URL", url.clone()),
        ] {
            node.env.insert(variable.to_owned(), value);
        }
        node.env.extend(vars.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        node.name = name.to_owned();
        self.facts.processes.push(node);
        self.restart(name)?;
        self.until_answers(&url.replace("/v1", "/ready")).await?;
        Ok(url)
    }

    /// Waits until a GET of `url` succeeds.
    pub async fn until_answers(&self, url: &str) -> Result<()> {
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < RESTART_LIMIT {
            match reqwest::get(url).await {
                Ok(r) if r.status().is_success() => return Ok(()),
                Ok(r) => last = r.status().to_string(),
                Err(e) => last = e.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{url} did not answer: {last}\n{}", self.log())
    }

    /// Where the node keeps its usage log.
    pub fn usage_log_dir(&self) -> Result<PathBuf> {
        let env = &self.process("node")?.env;
        Ok(Path::new(env.get("LORIKEET_NODE_DATA").context("the node's directory")?).join("usage"))
    }

    /// The node's readiness page.
    pub fn node_ready_url(&self) -> String {
        self.facts.api_base_url.replace("/v1", "/ready")
    }

    /// Ends this demo as Ctrl-C does, and starts it again on the same data.
    pub async fn stop_and_start(mut self) -> Result<Self> {
        self.interrupt()?;
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir()?);
        drop(self);
        Self::start_in(dir).await
    }

    fn interrupt(&mut self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().try_into()?).context("a pid")?;
        kill_process(pid, Signal::INT)?;
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(started.elapsed() < RESTART_LIMIT, "the demo did not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        for child in self.restarted.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.child.try_wait().is_ok_and(|status| status.is_none()) && self.interrupt().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Facts {
    fn unknown() -> Self {
        let login = Login { email: String::new(), password: String::new() };
        let (api_base_url, dashboard_url) = (String::new(), String::new());
        Self { api_base_url, dashboard_url, operator: login, tenants: vec![], processes: vec![] }
    }
}

/// The program beside this test binary: `target/debug/deps/<test>` → `target/debug/lorikeet`.
pub fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let path = test.parent().and_then(Path::parent).context("target/debug")?.join("lorikeet");
    ensure!(path.is_file(), "no {}: run `cargo build --workspace` first", path.display());
    Ok(path)
}
