//! The demo's PostgreSQL: whatever is killed, running the same command again is the recovery.

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection, Row};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A cluster in a directory that the `postgres` account can enter when the tests run as root.
struct Home {
    temp: TempDir,
}

impl Home {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
        Self { temp }
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().join("pg")
    }

    fn start(&self) -> Server {
        let log = std::fs::File::create(self.temp.path().join("log")).unwrap();
        Server(command(&self.dir()).stderr(log).spawn().unwrap())
    }

    async fn connect(&self) -> PgConnection {
        let socket = self.dir().join("socket");
        let url = format!("postgres://postgres@localhost/postgres?host={}", socket.display());
        let started = Instant::now();
        loop {
            match PgConnection::connect(&url).await {
                Ok(connection) => return connection,
                Err(error) if started.elapsed() > Duration::from_secs(60) => {
                    let log = std::fs::read_to_string(self.temp.path().join("log")).unwrap();
                    panic!("{error}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn count(&self) -> i64 {
        let query = sqlx::query("select count(*) from kept");
        query.fetch_one(&mut self.connect().await).await.unwrap().get(0)
    }

    async fn add_row(&self) {
        let mut db = self.connect().await;
        sqlx::query("create table if not exists kept (n int)").execute(&mut db).await.unwrap();
        sqlx::query("insert into kept values (1)").execute(&mut db).await.unwrap();
    }
}

/// Killed when a test ends, however it ends.
struct Server(Child);

impl Server {
    fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            self.signal(Signal::INT);
        }
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lorikeet"));
    command.arg("demo-postgres").arg("--dir").arg(dir).stdin(Stdio::null());
    command
}

fn refusal(dir: &Path) -> String {
    let output = command(dir).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_stopped_cluster_starts_again_at_once_with_its_rows() {
    let home = Home::new();
    let mut server = home.start();
    home.add_row().await;
    server.signal(Signal::INT);

    let restarted = Instant::now();
    let _server = home.start();
    assert_eq!(home.count().await, 1);
    assert!(restarted.elapsed() < Duration::from_secs(3), "{:?}", restarted.elapsed());
}

#[tokio::test]
async fn acknowledged_rows_survive_kill_9_of_the_server_again_and_again() {
    let home = Home::new();
    let mut server = home.start();
    let mut fsync = home.connect().await;
    let fsync = sqlx::query("show fsync").fetch_one(&mut fsync).await.unwrap();
    assert_eq!(fsync.get::<String, _>(0), "on");
    for round in 1..=5 {
        home.add_row().await;
        server.signal(Signal::KILL);
        server = home.start();
        assert_eq!(home.count().await, round);
    }
}

#[tokio::test]
async fn a_backend_that_works_on_without_its_postmaster_is_ended_first() {
    let home = Home::new();
    let mut server = home.start();
    home.add_row().await;
    let mut busy = home.connect().await;
    let work = tokio::spawn(async move {
        let hours = sqlx::query("select count(*) from generate_series(1, 100000000000)");
        hours.execute(&mut busy).await.map(drop)
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.signal(Signal::KILL);

    let _server = home.start();
    assert_eq!(home.count().await, 1);
    assert!(work.await.unwrap().is_err());
}

#[tokio::test]
async fn a_pid_that_another_program_has_by_now_does_not_block_the_start() {
    let home = Home::new();
    let mut server = home.start();
    home.add_row().await;
    server.signal(Signal::KILL);

    let live_stranger = std::process::id().to_string();
    for file in ["data/postmaster.pid", "socket/.s.PGSQL.5432.lock"] {
        let path = home.dir().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        std::fs::write(&path, format!("{live_stranger}\n{rest}")).unwrap();
    }
    let _server = home.start();
    assert_eq!(home.count().await, 1);
}

#[tokio::test]
async fn a_kill_while_the_cluster_is_being_made_leaves_nothing_half_made() {
    let home = Home::new();
    let mut server = home.start();
    let unfinished = home.dir().join("data.unfinished");
    while !unfinished.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.signal(Signal::KILL);

    let _server = home.start();
    home.add_row().await;
    assert_eq!(home.count().await, 1);
}

#[tokio::test]
async fn a_running_cluster_is_not_started_twice() {
    let home = Home::new();
    let server = home.start();
    home.add_row().await;
    let error = refusal(&home.dir());
    assert!(
        error.contains("already runs") && error.contains(&server.0.id().to_string()),
        "{error}"
    );
    assert_eq!(home.count().await, 1);
}

#[tokio::test]
async fn the_socket_and_the_data_are_closed_to_other_accounts() {
    let home = Home::new();
    let _server = home.start();
    home.connect().await;
    for path in ["", "socket", "data"] {
        let mode = home.dir().join(path).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path}");
    }
    let mut db = home.connect().await;
    let listens = sqlx::query("show listen_addresses").fetch_one(&mut db).await.unwrap();
    assert_eq!(listens.get::<String, _>(0), "");
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_with_the_excess() {
    let error = refusal(&Path::new("/tmp").join("x".repeat(100)));
    assert!(error.contains("19 bytes longer") && error.contains("LORIKEET_DATA"), "{error}");
}
