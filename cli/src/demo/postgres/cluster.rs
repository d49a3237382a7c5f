//! The cluster: made once, recovered at each start.

use super::account::Account;
use super::binaries::Binaries;
use super::processes;
use crate::demo::death_signal;
use crate::demo::leftovers::MARK;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `sun_path` has room for this many bytes before its terminating zero.
const LONGEST_SOCKET_PATH: usize = 107;
const SOCKET_FILE: &str = ".s.PGSQL.5432";

/// Backends that outlived their postmaster notice within milliseconds; after this they are told to.
const ORPHANS_LEAVE_WITHIN: Duration = Duration::from_secs(2);
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// One directory, owned by who runs the server and closed to everyone else, with the data directory
/// and the socket in it.
pub struct Cluster {
    dir: PathBuf,
    account: Option<Account>,
}

impl Cluster {
    /// Checks the path; touches nothing.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir)
            .with_context(|| format!("{} is no usable path", dir.display()))?;
        let cluster = Self { dir, account: Account::to_become()? };
        let socket = cluster.socket_dir().join(SOCKET_FILE);
        let excess = socket.as_os_str().len().saturating_sub(LONGEST_SOCKET_PATH);
        if excess > 0 {
            bail!(
                "{} is {excess} bytes longer than the path of a unix socket may be: choose a \
                 shorter data directory (LORIKEET_DATA)",
                socket.display()
            );
        }
        Ok(cluster)
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn socket_dir(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// For a role that logs in over the socket. No password: whoever can reach the socket owns the
    /// cluster's files.
    pub fn url(&self, role: &str, database: &str) -> String {
        let dir = self.socket_dir().to_string_lossy().replace('%', "%25").replace('/', "%2F");
        format!("postgres://{role}@localhost/{database}?host={dir}")
    }

    /// The version that made the cluster, if it has been made.
    pub fn major_version(&self) -> anyhow::Result<Option<u32>> {
        let path = self.data_dir().join("PG_VERSION");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().parse().with_context(|| path.display().to_string())?)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Makes the cluster when missing, and clears away what a crash left. Afterwards `exec` works.
    pub fn prepare(&self, binaries: &Binaries) -> anyhow::Result<()> {
        for dir in [self.dir.clone(), self.socket_dir()] {
            std::fs::create_dir_all(&dir)
                .and_then(|()| std::fs::set_permissions(&dir, Permissions::from_mode(0o700)))
                .and_then(|()| self.give_away(&dir))
                .with_context(|| format!("cannot create {}", dir.display()))?;
        }
        if let Some(account) = &self.account {
            self.check_reachable(&self.dir)?;
            account
                .check_can_reach(&binaries.dir.join("postgres"))
                .context("install PostgreSQL for everyone (`apt-get install postgresql`)")?;
        }
        if self.major_version()?.is_none() {
            self.initialise(binaries)?;
        }
        self.wait_for_orphans()?;
        self.replace_stale_pid()
    }

    /// That the server's account can enter the directories above `path`, which exist.
    pub fn check_reachable(&self, path: &Path) -> anyhow::Result<()> {
        let Some(account) = &self.account else { return Ok(()) };
        account
            .check_can_reach(path)
            .context("choose another data directory (LORIKEET_DATA, such as /var/lib/lorikeet)")
    }

    /// Replaces this process by the server. Returns only on failure.
    pub fn exec(&self, binaries: &Binaries) -> anyhow::Error {
        let mut server = self.command(&binaries.dir.join("postgres"));
        // Its stop is not `leftovers`' business, whose SIGTERM would wait for every client to leave.
        server.env_remove(MARK);
        // Listens on the socket alone. fsync stays on: the demo keeps what it has acknowledged.
        server.arg("-D").arg(self.data_dir()).arg("-k").arg(self.socket_dir()).args(["-h", ""]);
        for setting in [
            "unix_socket_permissions=0700",
            "timezone=UTC",
            "log_timezone=UTC",
            "logging_collector=off",
        ] {
            server.args(["-c", setting]);
        }
        if let Err(error) = death_signal::keep_across_exec(&mut server) {
            return error.into();
        }
        let error = server.exec();
        anyhow::Error::from(error).context(format!("cannot run {}", binaries.dir.display()))
    }

    /// Stops a server that an earlier run left behind; true if there was one.
    pub fn stop_leftover(&self) -> anyhow::Result<bool> {
        let Some(postmaster) = self.running_postmaster() else { return Ok(false) };
        // SIGINT is PostgreSQL's fast shutdown.
        rustix::process::kill_process(postmaster, Signal::INT)
            .context("cannot stop the PostgreSQL of an earlier run")?;
        if !self.wait_until_idle(STOPS_WITHIN) {
            bail!("the PostgreSQL of an earlier run (pid {postmaster}) does not stop: kill it");
        }
        Ok(true)
    }

    /// Into a directory of another name, renamed when complete, so that a kill in the middle leaves
    /// no half-made cluster.
    fn initialise(&self, binaries: &Binaries) -> anyhow::Result<()> {
        let unfinished = self.dir.join("data.unfinished");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)
                .with_context(|| format!("cannot remove {}", unfinished.display()))?;
        }
        let mut initdb = self.command(&binaries.dir.join("initdb"));
        initdb.arg("-D").arg(&unfinished).args(["-U", "postgres", "-A", "trust"]);
        initdb.args(["--no-locale", "-E", "UTF8"]).stdin(Stdio::null());
        death_signal::end_with_parent(&mut initdb, Signal::KILL);
        let output = initdb.output().context("cannot run initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        std::fs::rename(&unfinished, self.data_dir()).context("cannot rename the new cluster")
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        // The account may not be able to enter the current directory.
        command.current_dir("/");
        command
    }

    fn give_away(&self, path: &Path) -> std::io::Result<()> {
        let Some(account) = &self.account else { return Ok(()) };
        chown(path, Some(account.uid), Some(account.gid))
    }

    fn pid_file(&self) -> PathBuf {
        self.data_dir().join("postmaster.pid")
    }

    fn running_postmaster(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.pid_file()).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
        processes::working_in(&self.data_dir()).contains(&pid).then_some(pid)
    }

    /// After kill -9 of the postmaster its backends hold the shared memory until they notice, and a
    /// start at once may even find the postmaster itself still dying.
    fn wait_for_orphans(&self) -> anyhow::Result<()> {
        if self.wait_until_idle(ORPHANS_LEAVE_WITHIN) {
            return Ok(());
        }
        if let Some(pid) = self.running_postmaster() {
            bail!("PostgreSQL already runs in {} (pid {pid})", self.dir.display());
        }
        for orphan in processes::working_in(&self.data_dir()) {
            // One that has just left is what we want.
            let _ = rustix::process::kill_process(orphan, Signal::QUIT);
        }
        if !self.wait_until_idle(STOPS_WITHIN) {
            bail!("processes of a crashed PostgreSQL still work in {}", self.dir.display());
        }
        Ok(())
    }

    fn wait_until_idle(&self, limit: Duration) -> bool {
        let started = Instant::now();
        while !processes::working_in(&self.data_dir()).is_empty() {
            if started.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Nobody works in the data directory now, yet the pid in a crash's `postmaster.pid` may be
    /// another program's by now, and PostgreSQL would take that for a live server. Deleting the file
    /// would defeat its check for shared memory still in use, so only the pid is replaced: by ours,
    /// which is about to be the server's.
    fn replace_stale_pid(&self) -> anyhow::Result<()> {
        let path = self.pid_file();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).context("cannot read postmaster.pid"),
        };
        let lock = self.socket_dir().join(format!("{SOCKET_FILE}.lock"));
        match std::fs::remove_file(&lock) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", lock.display()));
            }
            _ => {}
        }
        let Some((_, rest)) = text.split_once('\n') else {
            // Killed before it was written: no shared memory to protect.
            return std::fs::remove_file(&path).context("cannot remove an empty postmaster.pid");
        };
        let fresh = path.with_extension("pid.new");
        std::fs::write(&fresh, format!("{}\n{rest}", std::process::id()))
            .and_then(|()| std::fs::set_permissions(&fresh, Permissions::from_mode(0o600)))
            .and_then(|()| self.give_away(&fresh))
            .and_then(|()| std::fs::rename(&fresh, &path))
            .context("cannot replace the pid in postmaster.pid")
    }
}
