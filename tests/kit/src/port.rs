use std::io;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// A port for a process that will listen on it later, kept free for it as long as this is held: no
/// connection gets it for its own end, and no other test on this machine.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    /// The port's number as a name that one process can have at a time. Ends with the process.
    _name: UnixListener,
}

impl ReservedPort {
    /// Fails when none is left.
    pub fn new() -> io::Result<Self> {
        candidates().find_map(Self::reserve).ok_or_else(|| {
            io::Error::new(io::ErrorKind::AddrInUse, "all ports for tests are taken")
        })
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    fn reserve(number: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("lorikeet-test-port-{number}")).ok()?;
        let name = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind(("127.0.0.1", number)).ok()?;
        Some(Self { number, _name: name })
    }
}

/// Those below the ports from which the system takes one for each connection.
fn candidates() -> RangeInclusive<u16> {
    const FIRST: u16 = 10_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let lowest = range.ok().and_then(|text| text.split_whitespace().next()?.parse::<u16>().ok());
    // Where connections may have nearly any port, there is none that they leave alone.
    FIRST..=lowest.filter(|port| *port > FIRST + 1000).unwrap_or(32_768) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved() -> ReservedPort {
        ReservedPort::new().expect("a port")
    }

    #[test]
    fn a_reserved_port_is_free_and_nobody_elses_until_it_is_given_back() {
        let (one, other) = (reserved(), reserved());
        assert_ne!(one.number, other.number);
        TcpListener::bind(("127.0.0.1", one.number)).expect("a port");
        assert!(ReservedPort::reserve(one.number).is_none());
        let number = one.number;
        drop(one);
        assert!(ReservedPort::reserve(number).is_some());
    }

    #[test]
    fn a_port_on_which_somebody_listens_is_passed_over() {
        let squatter = TcpListener::bind("127.0.0.1:0").expect("a port");
        assert!(ReservedPort::reserve(squatter.local_addr().expect("an address").port()).is_none());
    }
}
