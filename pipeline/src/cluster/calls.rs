//! Calls that come in: each is answered on a thread of its own, so that a stranger who says nothing
//! keeps nobody waiting.

use std::io;
use std::net::{TcpListener, TcpStream};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::secret::{Failure, Key};
use super::wire::Hello;
use super::{GREETING, RETRY};

/// Calls answered at once; further ones are hung up on, and call again.
const CALLS_MAX: usize = 64;

/// The calls on one listener.
pub(super) struct Calls<'a> {
    listener: &'a TcpListener,
    key: Key,
    known_in: Sender<(TcpStream, Hello)>,
    known: Receiver<(TcpStream, Hello)>,
    /// As many as calls are being answered.
    places: (Sender<()>, Receiver<()>),
}

impl Calls<'_> {
    pub(super) fn on<'a>(listener: &'a TcpListener, key: &Key) -> io::Result<Calls<'a>> {
        listener.set_nonblocking(true)?;
        let (known_in, known) = bounded(CALLS_MAX);
        Ok(Calls { listener, key: key.clone(), known_in, known, places: bounded(CALLS_MAX) })
    }

    /// The next caller who is one of us, or `None` when none came for a moment.
    pub(super) fn next(&self) -> io::Result<Option<(TcpStream, Hello)>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                // A caller that is gone already fails here, which is its own affair.
                if stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true)).is_ok() {
                    self.answer(stream)?;
                }
                Ok(self.known.try_recv().ok())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => Ok(self.known.recv_timeout(RETRY).ok()),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn answer(&self, stream: TcpStream) -> io::Result<()> {
        if self.places.0.try_send(()).is_err() {
            return Ok(());
        }
        let (key, known, places) = (self.key.clone(), self.known_in.clone(), self.places.1.clone());
        let answer = move || {
            match key.answer(&stream, GREETING) {
                // Nobody waits for it any more when this fails.
                Ok(hello) => drop(known.send((stream, hello))),
                Err(Failure::Unproven) => {
                    tracing::warn!("somebody called who does not know the cluster's secret");
                }
                Err(Failure::Io(error)) => {
                    tracing::warn!(%error, "somebody called who is no process of this version or does not accept our secret");
                }
            }
            let _ = places.try_recv();
        };
        std::thread::Builder::new().name("caller".into()).spawn(answer).map(drop)
    }
}
