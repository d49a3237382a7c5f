//! A server that has been killed keeps its port and its locks until the kernel has taken it apart,
//! which takes a moment with a model in memory. Its successor, started at once, waits for that.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// Returns when the address is free, or has been taken for so long that someone lives there: then
/// the server's own error says so.
pub async fn wait_until_gone(address: SocketAddr) {
    let started = Instant::now();
    while is_taken(address) && started.elapsed() < LEAVES_WITHIN {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_taken(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_successor_waits_until_the_port_is_let_go() {
        let predecessor = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = predecessor.local_addr().unwrap();
        let waiting = tokio::spawn(wait_until_gone(address));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        drop(predecessor);
        tokio::time::timeout(LEAVES_WITHIN, waiting).await.unwrap().unwrap();
    }
}
