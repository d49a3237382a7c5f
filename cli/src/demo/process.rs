//! One part as a process of its own.

use super::death_signal;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// A log that has grown beyond this at a start makes room for a new one.
const LOG_BYTES: u64 = 8 << 20;

/// All it takes to start the part: running `argv` with exactly `env`, anywhere, brings it back.
#[derive(Debug, Clone)]
pub struct Spec {
    pub name: &'static str,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Takes standard output and standard error.
    pub log: PathBuf,
    /// Asks it to end in good order.
    pub stop: Signal,
    pub stops_within: Duration,
}

pub struct Process {
    pub spec: Spec,
    pub pid: u32,
    child: Child,
    log_start: u64,
}

impl Process {
    /// Call it on the main thread: `death_signal` says why.
    pub fn start(spec: Spec) -> anyhow::Result<Self> {
        debug_assert_eq!(std::thread::current().name(), Some("main"));
        let (program, args) = spec.argv.split_first().context("an argv has a program")?;
        let (log, log_start) = open_log(&spec.log)?;
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .envs(&spec.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo alone, which ends its parts in order.
            .process_group(0);
        death_signal::end_with_parent(command.as_std_mut(), spec.stop);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let pid = child.id().context("a process just started has a pid")?;
        Ok(Self { spec, pid, child, log_start })
    }

    /// Polls `probe` until it holds. Fails when the process ends first, with what it said last.
    pub async fn until(
        &mut self,
        limit: Duration,
        mut probe: impl AsyncFnMut() -> bool,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.spec.name, self.last_words());
            }
            if probe().await {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!(
                    "{} is not ready after {} s:\n{}",
                    self.spec.name,
                    limit.as_secs(),
                    self.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// In good order if it can be, by SIGKILL otherwise.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.pid.cast_signed()).context("a pid is positive")?;
        kill_process(pid, self.spec.stop)?;
        if tokio::time::timeout(self.spec.stops_within, self.child.wait()).await.is_err() {
            eprintln!("{} does not stop: killed", self.spec.name);
            self.child.kill().await?;
        }
        Ok(())
    }

    /// The end of what it has logged since it was started.
    fn last_words(&self) -> String {
        const LINES: usize = 15;
        let text = std::fs::read(&self.spec.log).unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(0).min(text.len());
        let text = String::from_utf8_lossy(&text[start..]);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
        format!("  {tail}\n(all of it: {})", self.spec.log.display())
    }
}

/// Opened for appending, with its present length.
fn open_log(path: &Path) -> anyhow::Result<(File, u64)> {
    let open = || {
        if path.metadata().is_ok_and(|meta| meta.len() > LOG_BYTES) {
            std::fs::rename(path, path.with_added_extension("old"))?;
        }
        let file = File::options().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok::<_, std::io::Error>((file, length))
    };
    open().with_context(|| format!("cannot open the log {}", path.display()))
}
