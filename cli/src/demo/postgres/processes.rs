//! Which server processes really work in a data directory. The pid in `postmaster.pid` may be a
//! zombie's, or by now another program's; but every PostgreSQL process has its data directory as
//! its working directory, and that no other process does by chance.

use rustix::process::Pid;
use std::path::Path;

/// Without zombies: their working directory is gone.
pub fn working_in(data: &Path) -> Vec<Pid> {
    let Ok(data) = data.canonicalize() else { return Vec::new() };
    let Ok(proc) = std::fs::read_dir("/proc") else { return Vec::new() };
    proc.flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let dir = std::fs::read_link(entry.path().join("cwd")).ok()?;
            let program = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            (dir == data && program.starts_with("postgres")).then_some(pid)
        })
        .collect()
}
