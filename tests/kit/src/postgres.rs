//! One private PostgreSQL for the tests of one process, on a unix socket in a directory of its own.
//!
//! It ends with the process however that ends: a shell keeps it, waits on a pipe that the test
//! process holds, and removes everything once the pipe closes. fsync is off: nothing here outlives
//! the process.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const KEEPER: &str = r#"
postgres=$1 dir=$2
"$postgres" -D "$dir/data" -k "$dir" -h '' \
  -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c shared_buffers=32MB \
  -c max_connections=400 -c log_min_messages=fatal >"$dir/log" 2>&1 &
read -r _
kill -QUIT $!
wait $!
rm -rf "$dir"
"#;

pub struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    /// Its stdin is the pipe: it must stay open as long as this process runs.
    keeper: Child,
}

/// The process's cluster, started at the first call. Superuser: `postgres`.
pub fn shared() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

impl Cluster {
    /// `postgres://user@localhost/database?host=...`, understood by libpq and sqlx.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@localhost/{database}?host={}", self.dir.display())
    }

    /// The directory of the socket.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    fn start() -> Self {
        let bin = bin_dir();
        let dir = std::env::temp_dir().join(format!("lk-pg-{}", std::process::id()));
        // Of a process that had this id before, and whose keeper was killed.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("own directory");
        let user = unprivileged_user();
        if let Some((uid, gid)) = user {
            chown(&dir, Some(uid), Some(gid)).expect("root may chown");
        }
        let command = |program: &Path| {
            let mut command = Command::new(program);
            command.current_dir("/").process_group(0);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let initdb = command(&bin.join("initdb"))
            .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"])
            .args(["--locale=C", "--no-instructions", "--pgdata"])
            .arg(dir.join("data"))
            .output()
            .expect("initdb starts");
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let keeper = command(Path::new("/bin/sh"))
            .args(["-c", KEEPER, "keeper"])
            .arg(bin.join("postgres"))
            .arg(&dir)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell starts");
        let mut cluster = Self { dir, bin, keeper };
        cluster.wait_until_ready();
        cluster
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            let ready = Command::new(self.bin.join("pg_isready"))
                .arg("--quiet")
                .arg("--host")
                .arg(&self.dir)
                .status();
            if ready.is_ok_and(|status| status.success()) {
                return;
            }
            let ended = self.keeper.try_wait().expect("own child");
            assert!(ended.is_none(), "PostgreSQL did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("PostgreSQL is not ready after a minute: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

/// The newest of Debian's, else what is on the PATH.
fn bin_dir() -> PathBuf {
    let version = |path: &PathBuf| -> u32 {
        path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .max_by_key(version)
        .map(|path| path.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian
        .into_iter()
        .chain(std::env::split_paths(&path))
        .find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file())
        .expect("no initdb found: apt-get install postgresql")
}

/// initdb refuses to run as root: `postgres`, else `nobody`.
fn unprivileged_user() -> Option<(u32, u32)> {
    let root =
        fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if !root {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let ids = |name: &str| -> Option<(u32, u32)> {
        let line = passwd.lines().find(|l| l.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).expect("a user `postgres` or `nobody`"))
}
