//! Tells the program which commit it was built from: a measurement without it is worth little. Outside
//! of a checkout, or without git, `LORIKEET_COMMIT` may say it; else nobody does.

use std::path::Path;
use std::process::{Command, Stdio};

/// What the program is made of. A change there is one that the commit lacks.
const SOURCES: [&str; 12] = [
    "Cargo.lock",
    "cli",
    "compute",
    "contract",
    "control-plane",
    "http",
    "inference",
    "metrics",
    "migrations",
    "reference",
    "s3",
    "web",
];

fn main() {
    println!("cargo::rerun-if-env-changed=LORIKEET_COMMIT");
    for source in SOURCES {
        rerun_if_changed(&format!("../{source}"));
    }
    // Every commit and every checkout leaves a line in the one, or else moves the other.
    for place in ["logs/HEAD", "HEAD"] {
        git(&["rev-parse", "--git-path", place]).as_deref().map(rerun_if_changed);
    }
    let describe = ["describe", "--always", "--dirty", "--exclude=*"];
    let commit = std::env::var("LORIKEET_COMMIT").ok().or_else(|| git(&describe));
    if let Some(commit) = commit {
        println!("cargo::rustc-env=LORIKEET_COMMIT={commit}");
    }
}

/// Of a file that is not there cargo would think that it changes each time.
fn rerun_if_changed(path: &str) {
    if Path::new(path).exists() {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// What git says, if there is one and this is a checkout. It is not to wait for, or hold, anybody's lock.
fn git(arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    let git = git.args(arguments).env("GIT_OPTIONAL_LOCKS", "0").stderr(Stdio::null());
    let output = git.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
