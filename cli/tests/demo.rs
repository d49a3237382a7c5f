//! `lorikeet demo` as a process: what it keeps, what it ends, what it refuses.

use lorikeet_kit::ReservedPort;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(180);

struct Demo {
    child: Child,
    facts: Value,
    _ports: Vec<ReservedPort>,
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
            self.child.wait().unwrap();
        }
    }
}

impl Demo {
    fn pids(&self) -> Vec<u64> {
        let processes = self.facts["processes"].as_array().unwrap();
        processes.iter().map(|process| process["pid"].as_u64().unwrap()).collect()
    }
}

fn data(temp: &TempDir) -> PathBuf {
    temp.path().join("data")
}

/// The ports are to be held as long as the demo runs.
fn command(data: &Path) -> (Command, Vec<ReservedPort>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lorikeet"));
    command.arg("demo").arg("--data").arg(data).stdin(Stdio::null());
    command.arg("--model").arg(lorikeet_kit::model_path());
    let mut ports = Vec::new();
    for flag in [
        "--control-plane-port",
        "--node-port",
        "--s3-port",
        "--grpc-port",
        "--control-plane-metrics-port",
        "--node-metrics-port",
    ] {
        let port = ReservedPort::new().unwrap();
        command.arg(flag).arg(port.number().to_string());
        ports.push(port);
    }
    (command, ports)
}

fn start(temp: &TempDir) -> Demo {
    let log = temp.path().join("log");
    let file = File::create(&log).unwrap();
    let (mut command, ports) = command(&data(temp));
    let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    let mut demo = Demo { child, facts: Value::Null, _ports: ports };
    until(|| {
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(demo.child.try_wait().unwrap().is_none(), "{text}");
        text.contains("Up in")
    });
    let facts = std::fs::read(data(temp).join("demo.json")).unwrap();
    demo.facts = serde_json::from_slice(&facts).unwrap();
    demo
}

fn until(mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn runs(pid: u64) -> bool {
    // A zombie still has a directory, but no program.
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

#[test]
fn a_demo_killed_with_9_takes_its_parts_along_and_starts_again_with_the_same_keys() {
    let temp = tempfile::Builder::new().prefix("lk-").tempdir().unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut first = start(&temp);
    let mode = data(&temp).join("demo.json").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(first.pids().len(), 4);

    let second = command(&data(&temp)).0.output().unwrap();
    let refusal = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(refusal.contains("already runs"), "{refusal}");

    first.child.kill().unwrap();
    first.child.wait().unwrap();
    until(|| !first.pids().into_iter().any(runs));

    let again = start(&temp);
    assert_eq!(again.facts["tenants"], first.facts["tenants"]);
    assert_eq!(again.facts["operator"], first.facts["operator"]);
    let pids = again.pids();
    drop(again);
    assert!(!pids.into_iter().any(runs), "Ctrl-C leaves nothing running");
    assert!(!data(&temp).join("demo.json").exists());

    let reset = command(&data(&temp)).0.arg("--reset").output().unwrap();
    let question = String::from_utf8_lossy(&reset.stderr).into_owned();
    assert!(!reset.status.success() && question.contains("--yes"), "{question}");
    assert!(data(&temp).join("state.json").exists(), "nothing was deleted unasked");
}
