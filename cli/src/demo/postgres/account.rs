//! PostgreSQL refuses to run as root: root lends it an account that owns nothing else here.

use anyhow::{Context, bail};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Debian's package makes the first; every system has the second.
const ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// The account to become, or `None` when this process is not root and stays who it is.
    pub fn to_become() -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let account = ACCOUNTS.iter().find_map(|name| find(&passwd, name));
        account.map(Some).context(
            "PostgreSQL does not run as root, and there is neither an account `postgres` nor \
             `nobody`: add one with `adduser --system --group postgres`",
        )
    }

    /// Fails with the first directory on the way to `path` that the account cannot enter.
    pub fn check_can_reach(&self, path: &Path) -> anyhow::Result<()> {
        let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
        parents.reverse();
        for dir in parents {
            let meta = dir.metadata().with_context(|| format!("cannot read {}", dir.display()))?;
            let needed = match () {
                () if meta.uid() == self.uid => 0o100,
                () if meta.gid() == self.gid => 0o010,
                () => 0o001,
            };
            if meta.mode() & needed == 0 {
                bail!(
                    "the account `{}`, which PostgreSQL runs as under root, cannot enter {}",
                    self.name,
                    dir.display()
                );
            }
        }
        Ok(())
    }
}

fn find(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2).map(str::parse);
    let (uid, gid) = (ids.next()?.ok()?, ids.next()?.ok()?);
    Some(Account { name: name.to_owned(), uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        postgresql-exporter:x:7:7::/:/bin/false\n\
        nobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin\n";

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        assert_eq!(find(PASSWD, "postgres"), None);
        let nobody = Account { name: "nobody".into(), uid: 65534, gid: 65533 };
        assert_eq!(find(PASSWD, "nobody"), Some(nobody));
    }

    #[test]
    fn a_closed_directory_on_the_way_is_named() {
        let top = tempfile::tempdir().unwrap();
        let closed = top.path().join("closed");
        std::fs::create_dir_all(closed.join("cluster")).unwrap();
        std::fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
        let nobody = find(PASSWD, "nobody").unwrap();

        std::fs::set_permissions(&closed, Permissions::from_mode(0o711)).unwrap();
        nobody.check_can_reach(&closed.join("cluster")).unwrap();
        std::fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
        let error = nobody.check_can_reach(&closed.join("cluster")).unwrap_err().to_string();
        assert!(error.contains(closed.to_str().unwrap()), "{error}");
    }
}
