//! The connections of the workers: every process opens one to each process before it.

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::calls::Calls;
use super::secret::Failure;
use super::wire::Lane;
use super::{ClusterError, GREETING, JOIN, RETRY, Terms};
use crate::clock;
use crate::engine::Mesh;

/// How long the name of this process may be unknown after its start.
const NAMED: Duration = Duration::from_secs(60);

/// Listens on `address`; a name that is not known yet is looked up again for a while.
pub(super) fn listen(address: &str) -> Result<TcpListener, ClusterError> {
    let started = clock::instant();
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                if error.kind() == io::ErrorKind::AddrInUse || started.elapsed() > NAMED {
                    let (address, what) = (address.to_owned(), error.to_string());
                    return Err(ClusterError::Listen { address, what });
                }
            }
        }
        std::thread::sleep(RETRY);
    }
}

/// Opens a connection to one of the addresses of a name.
pub(super) fn connect(address: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::other("the name has no address");
    for at in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&at, GREETING) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Connects this process with all others, who are listening by now. The number of the run keeps those
/// of an earlier one out.
pub(super) fn build(terms: &Terms, listener: &TcpListener, run: u64) -> anyhow::Result<Mesh> {
    let members = &terms.members;
    let (here, count) = (members.process, members.count());
    let mut sockets: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    for (process, address) in members.hosts.iter().enumerate().take(here) {
        let lost = |error: io::Error| ClusterError::Lost { process, what: error.to_string() };
        let stream = connect(address).map_err(lost)?;
        let hello = terms.hello(Lane::Mesh { run, with: process });
        terms.key.call(&stream, &hello, JOIN).map_err(|failure| match failure {
            Failure::Io(error) => lost(error),
            Failure::Unproven => ClusterError::Unproven { address: address.clone() },
        })?;
        sockets[process] = Some(stream);
    }
    let (started, calls) = (clock::instant(), Calls::on(listener, &terms.key)?);
    while let Some(missing) = (here + 1..count).find(|process| sockets[*process].is_none()) {
        if started.elapsed() > JOIN {
            let what = "its workers did not connect".to_owned();
            return Err(ClusterError::Lost { process: missing, what }.into());
        }
        let Some((stream, hello)) = calls.next()? else { continue };
        let wanted = hello.lane == Lane::Mesh { run, with: here };
        if wanted && (here + 1..count).contains(&hello.process) {
            sockets[hello.process] = Some(stream);
        }
    }
    for socket in sockets.iter().flatten() {
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
    }
    Ok(Mesh { process: here, sockets })
}
