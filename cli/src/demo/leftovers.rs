//! Parts of this demo that it did not start itself: restarted by a script from demo.json, or left
//! by an earlier demo. Each part carries the demo's data directory in its environment.

use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

/// Names the data directory of the demo that a process is a part of.
pub const MARK: &str = "LORIKEET_DEMO";

const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// Ends them all, at the latest by SIGKILL. Returns how many there were. PostgreSQL, which hides
/// its environment, is the cluster's own business.
pub async fn stop(data: &Path) -> usize {
    let found = parts_of(data);
    for pid in &found {
        // One that has just ended is what we want; so below.
        let _ = kill_process(*pid, Signal::TERM);
    }
    let started = Instant::now();
    while !parts_of(data).is_empty() {
        if started.elapsed() > STOPS_WITHIN {
            for pid in parts_of(data) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    found.len()
}

fn parts_of(data: &Path) -> Vec<Pid> {
    let mark = format!("{MARK}={}", data.display());
    let Ok(proc) = std::fs::read_dir("/proc") else { return Vec::new() };
    proc.flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            // Empty for a zombie.
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            environment.split(|b| *b == 0).any(|var| var == mark.as_bytes()).then_some(pid)
        })
        .filter(|pid| pid.as_raw_nonzero().get().cast_unsigned() != std::process::id())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[tokio::test]
    async fn a_part_is_found_by_its_data_directory_and_ended() {
        let ours = tempfile::tempdir().unwrap();
        let sleep = |dir: &Path| Command::new("sleep").arg("60").env(MARK, dir).spawn().unwrap();
        let (mut part, mut stranger) = (sleep(ours.path()), sleep(Path::new("/elsewhere")));
        let waiter = std::thread::spawn(move || part.wait().unwrap());
        assert_eq!(stop(ours.path()).await, 1);
        assert_eq!(waiter.join().unwrap().signal(), Some(Signal::TERM.as_raw()));
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
