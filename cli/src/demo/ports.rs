//! Where the parts listen, and who is in the way.

use anyhow::bail;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// All on loopback: the demo is for this machine.
#[derive(clap::Args, Debug, Clone)]
pub struct Ports {
    /// The dashboard and `/api/v1`
    #[arg(long, value_name = "PORT", default_value_t = 7700)]
    pub control_plane_port: u16,
    /// The OpenAI-compatible `/v1`
    #[arg(long, value_name = "PORT", default_value_t = 7710)]
    pub node_port: u16,
    /// The object store
    #[arg(long, value_name = "PORT", default_value_t = 7720)]
    pub s3_port: u16,
    /// Between control plane and node
    #[arg(long, value_name = "PORT", default_value_t = 7730)]
    pub grpc_port: u16,
    /// The control plane's `/metrics`
    #[arg(long, value_name = "PORT", default_value_t = 7701)]
    pub control_plane_metrics_port: u16,
    /// The node's `/metrics`
    #[arg(long, value_name = "PORT", default_value_t = 7711)]
    pub node_metrics_port: u16,
}

impl Ports {
    /// Port, its option, and what it is for.
    fn all(&self) -> [(u16, &'static str, &'static str); 6] {
        [
            (self.control_plane_port, "--control-plane-port", "the dashboard"),
            (self.node_port, "--node-port", "the node's API"),
            (self.s3_port, "--s3-port", "the object store"),
            (self.grpc_port, "--grpc-port", "the link between control plane and node"),
            (
                self.control_plane_metrics_port,
                "--control-plane-metrics-port",
                "the control plane's metrics",
            ),
            (self.node_metrics_port, "--node-metrics-port", "the node's metrics"),
        ]
    }

    /// Names the first port that is taken, and by whom where that can be told.
    pub fn check_free(&self) -> anyhow::Result<()> {
        for (port, option, purpose) in self.all() {
            if TcpListener::bind(address(port)).is_ok() {
                continue;
            }
            let owner = match listener_on(port) {
                Some(owner) => format!(" by {owner}"),
                None => String::new(),
            };
            bail!(
                "port {port}, for {purpose}, is taken{owner}: stop it, or choose another with {option}"
            );
        }
        Ok(())
    }
}

pub fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// `name (pid)` of who listens on a port; only root sees other users' processes.
pub fn listener_on(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let inode = tables.iter().flatten().find_map(|table| listening_inode(table, port))?;
    let socket = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(open_files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = |fd: std::fs::DirEntry| {
            std::fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == socket.as_str())
        };
        if open_files.flatten().any(holds) {
            let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!("`{}` (pid {pid})", name.trim()));
        }
    }
    None
}

/// Of a table such as /proc/net/tcp: the inode of the socket that listens on `port`.
fn listening_inode(table: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let listens =
            u16::from_str_radix(local_port, 16).ok()? == port && *fields.get(3)? == LISTEN;
        listens.then(|| fields.get(9)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_owner_and_the_option_to_change_it() {
        let squatter = TcpListener::bind(address(0)).unwrap();
        let taken = squatter.local_addr().unwrap().port();
        let ports = Ports {
            control_plane_port: taken,
            node_port: 0,
            s3_port: 0,
            grpc_port: 0,
            control_plane_metrics_port: 0,
            node_metrics_port: 0,
        };
        let error = ports.check_free().unwrap_err().to_string();
        let pid = format!("(pid {})", std::process::id());
        for part in [taken.to_string().as_str(), "the dashboard", &pid, "--control-plane-port"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        let any = Ports { control_plane_port: 0, ..ports };
        any.check_free().unwrap();
    }
}
