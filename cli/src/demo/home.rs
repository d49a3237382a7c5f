//! The data directory: everything that a demo keeps, and nothing else's.

use anyhow::{Context, bail};
use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";
const STATE: &str = "state.json";

/// Everything that `--reset` deletes, and that a directory taken for a demo's may hold.
const ENTRIES: [&str; 9] = [
    LOCK,
    STATE,
    "demo.json",
    "node-signing-key.pem",
    "node-token",
    "postgres",
    "s3",
    "node",
    "logs",
];

/// A demo's data directory, held by this process alone while it exists.
pub struct Home {
    dir: PathBuf,
    lock: File,
}

impl Drop for Home {
    fn drop(&mut self) {
        // Closing is not enough: a child between fork and exec holds a copy of the descriptor.
        let _ = self.lock.unlock();
    }
}

impl Home {
    /// `/var/lib/lorikeet` for root, the user's own data directory otherwise.
    pub fn default_dir() -> anyhow::Result<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/lorikeet".into());
        }
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        var("XDG_DATA_HOME")
            .or_else(|| var("HOME").map(|home| home.join(".local/share")))
            .map(|dir| dir.join("lorikeet"))
            .context("no data directory: set HOME or LORIKEET_DATA")
    }

    /// Creates the directory when missing. Refuses one that another demo runs in, or that holds
    /// something else.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        refuse_foreign(&dir)?;
        // PostgreSQL's account has to pass through; each secret in it is closed by itself.
        std::fs::set_permissions(&dir, Permissions::from_mode(0o711))
            .with_context(|| format!("{} belongs to someone else", dir.display()))?;
        let lock = take_lock(&dir)?;
        Ok(Self { dir, lock })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        debug_assert!(ENTRIES.contains(&name), "`--reset` would keep {name}");
        self.dir.join(name)
    }

    /// Made when missing, and closed to other users.
    pub fn private_dir(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        DirBuilder::new()
            .recursive(true)
            .create(&path)
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o700)))
            .with_context(|| format!("cannot create {}", path.display()))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn state_file(&self) -> PathBuf {
        self.path(STATE)
    }

    pub fn is_new(&self) -> bool {
        !self.state_file().exists()
    }

    /// Deletes all that a demo made. The state goes last, so that a reset that breaks off in the
    /// middle is still known as a demo's directory.
    pub fn clear(&self) -> anyhow::Result<()> {
        let (last, rest): (Vec<&str>, Vec<&str>) =
            ENTRIES.iter().filter(|name| **name != LOCK).partition(|name| **name == STATE);
        for name in rest.into_iter().chain(last) {
            let path = self.path(name);
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            match removed {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("cannot delete {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn refuse_foreign(dir: &Path) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let name = entry?.file_name();
        if !ENTRIES.iter().any(|ours| name.to_str().is_some_and(|n| n.starts_with(ours))) {
            bail!(
                "{} is not a demo's data directory (it holds {}): choose an empty or new one",
                dir.display(),
                name.display()
            );
        }
    }
    Ok(())
}

fn take_lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            bail!("a demo already runs in {} (pid {}): stop it first", dir.display(), pid.trim());
        }
        Err(TryLockError::Error(e)) => return Err(e).context("cannot lock the data directory"),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Readable by the owner only; a reader sees the old content or the new, never a part.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let draft = path.with_added_extension("new");
    let write = || {
        let mut options = File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_else_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
        let error = Home::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("thesis.tex"), "{error}");
    }

    #[test]
    fn one_demo_at_a_time_runs_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path()).unwrap();
        let error = Home::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        Home::open(dir.path()).unwrap();
    }

    #[test]
    fn a_reset_deletes_what_a_demo_made_and_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        write_private(&home.state_file(), b"{}").unwrap();
        std::fs::create_dir_all(home.path("s3").join("lorikeet")).unwrap();
        assert!(!home.is_new());
        home.clear().unwrap();
        assert!(home.is_new() && !home.path("s3").exists());
        assert!(Home::open(dir.path()).is_err(), "the lock is still held");
    }

    #[test]
    fn a_private_file_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("demo.json");
        write_private(&path, b"old").unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
