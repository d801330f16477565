//! The connections of the workers: every process opens one to each process before it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};

use super::{ClusterError, GREETING, JOIN, Members, RETRY};
use crate::clock;
use crate::engine::Mesh;

/// Listens on `address`; a name that is not known yet is looked up again for a while.
pub(super) fn listen(address: &str) -> Result<TcpListener, ClusterError> {
    let started = clock::instant();
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                if error.kind() == io::ErrorKind::AddrInUse || started.elapsed() > GREETING {
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

/// The next connection, or `None` when none came for a moment.
pub(super) fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    listener.set_nonblocking(true)?;
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(GREETING))?;
            stream.set_write_timeout(Some(GREETING))?;
            Ok(Some(stream))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            std::thread::sleep(RETRY);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Connects this process with all others, who are listening by now. `run` keeps those of an earlier
/// run out.
pub(super) fn build(members: &Members, listener: &TcpListener, run: u64) -> anyhow::Result<Mesh> {
    let (here, count) = (members.process, members.count());
    let mut sockets: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    for (process, address) in members.hosts.iter().enumerate().take(here) {
        let lost = |error: io::Error| ClusterError::Lost { process, what: error.to_string() };
        let mut stream = connect(address).map_err(lost)?;
        let greeting = [run.to_le_bytes(), (here as u64).to_le_bytes()].concat();
        stream.write_all(&greeting).map_err(lost)?;
        sockets[process] = Some(stream);
    }
    let started = clock::instant();
    while let Some(missing) = (here + 1..count).find(|process| sockets[*process].is_none()) {
        if started.elapsed() > JOIN {
            let what = "its workers did not connect".to_owned();
            return Err(ClusterError::Lost { process: missing, what }.into());
        }
        let Some(mut stream) = accept(listener)? else { continue };
        let mut greeting = [0; 16];
        if stream.read_exact(&mut greeting).is_err() {
            continue;
        }
        let (theirs, process) = greeting.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let process = usize::try_from(number(process)).unwrap_or(usize::MAX);
        if number(theirs) == run && (here + 1..count).contains(&process) {
            sockets[process] = Some(stream);
        }
    }
    for socket in sockets.iter().flatten() {
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
    }
    Ok(Mesh { process: here, sockets })
}
