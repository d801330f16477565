//! The secret that all processes share, and the handshake by which each end of a connection proves
//! to the other that it knows it.
//!
//! ```text
//! caller                                   answerer
//!   nonce, hello ─────────────────────────►
//!   ◄──────── nonce, MAC("answerer", both)
//!   MAC("caller", both) ──────────────────►
//! ```
//! "Both" is the answerer's nonce and everything the caller said: its nonce, who it is, what the
//! connection is for, its program version and the digest of its configuration. The MAC is BLAKE3
//! keyed by a key derived from the secret. Nonces are new for each connection, so nothing that was
//! overheard proves anything a second time, and the two roles differ, so nobody's own words prove
//! anything to them.
//!
//! # What it never does
//! It does not encrypt, and what follows on the connection carries no MAC: whoever can change packets
//! between two processes can take over a connection after the handshake.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use omnify_config::Checked;
use serde::{Deserialize, Serialize};

use super::wire::{self, Hello};
use crate::clock;
use crate::commands::UsageError;

/// Shortest secret: what can be guessed is none.
const SECRET_BYTES_MIN: usize = 16;
/// Longest secret: a larger file is not one.
const SECRET_BYTES_MAX: u64 = 4096;
/// For what the key is derived, and in which version of the handshake.
const CONTEXT: &str = "omnify 2026 cluster handshake 1";

type Nonce = [u8; 32];

/// What a caller says first.
#[derive(Serialize, Deserialize)]
struct Call {
    nonce: Nonce,
    hello: Hello,
}

/// What it is answered.
#[derive(Serialize, Deserialize)]
struct Answer {
    nonce: Nonce,
    mac: [u8; 32],
}

#[derive(Clone, Copy)]
enum Role {
    Answerer,
    Caller,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failure {
    /// The other side does not know the secret.
    Unproven,
    /// The connection failed, or the time was over.
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

/// What proofs are made with.
#[derive(Clone)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// From the configuration. Without a secret everybody can make the proofs, so one is needed
    /// where a host of `hosts` is another machine's.
    pub(super) fn of(config: &Checked, hosts: &[String]) -> Result<Key, UsageError> {
        let cluster = &config.cluster;
        let (secret, place) = match (cluster.secret_file.as_str(), cluster.secret_env.as_str()) {
            ("", "") => (None, String::new()),
            ("", name) => (std::env::var(name).ok(), format!("the environment variable {name}")),
            (file, _) => {
                let place = format!("cluster.secret_file {file}");
                let read = || {
                    let mut text = String::new();
                    let opened = std::fs::File::open(file)?;
                    opened.take(SECRET_BYTES_MAX).read_to_string(&mut text).map(|_| text)
                };
                let text = read().map_err(|error| UsageError(format!("{place}: {error}")))?;
                (Some(text), place)
            }
        };
        let secret = secret.map(|text| text.trim().to_owned());
        match secret {
            Some(secret) if secret.len() < SECRET_BYTES_MIN => Err(UsageError(format!(
                "{place} holds {} bytes: a secret of the cluster has {SECRET_BYTES_MIN} or more, \
                 for example of `openssl rand -hex 32`",
                secret.len()
            ))),
            Some(secret) => Ok(Key::new(secret.as_bytes())),
            None => match hosts.iter().find(|host| !is_here(host)) {
                None => Ok(Key::new(b"")),
                Some(host) => Err(UsageError(format!(
                    "--hosts names {host}, which is not this machine only, and there is no secret: \
                     set cluster.secret_file or the environment variable that cluster.secret_env \
                     names, to the same secret in every process"
                ))),
            },
        }
    }

    fn new(secret: &[u8]) -> Key {
        Key(blake3::derive_key(CONTEXT, secret))
    }

    fn mac(&self, role: Role, answerer: &Nonce, call: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[role as u8]).update(answerer).update(call);
        hasher.finalize()
    }

    /// Calls: says `hello`, and is sure of the other side afterwards.
    pub(super) fn call(
        &self,
        stream: &TcpStream,
        hello: &Hello,
        patience: Duration,
    ) -> Result<(), Failure> {
        let mut stream = Timed::new(stream, patience);
        let call = Call { nonce: nonce()?, hello: hello.clone() };
        let call = postcard::to_allocvec(&call).map_err(io::Error::other)?;
        wire::send(&mut stream, &call)?;
        let answer: Answer = wire::receive(&mut stream, wire::GREETING_BYTES_MAX)?;
        // Hashes are compared in constant time.
        if self.mac(Role::Answerer, &answer.nonce, &call) != blake3::Hash::from(answer.mac) {
            return Err(Failure::Unproven);
        }
        let mac = self.mac(Role::Caller, &answer.nonce, &call);
        wire::send(&mut stream, mac.as_bytes())?;
        Ok(())
    }

    /// Answers a call: what the caller said, who is who it says it is.
    pub(super) fn answer(&self, stream: &TcpStream, patience: Duration) -> Result<Hello, Failure> {
        let mut stream = Timed::new(stream, patience);
        let call: Vec<u8> = wire::receive(&mut stream, wire::GREETING_BYTES_MAX)?;
        let Call { hello, .. } = postcard::from_bytes(&call).map_err(io::Error::other)?;
        let nonce = nonce()?;
        let mac = self.mac(Role::Answerer, &nonce, &call).into();
        wire::send(&mut stream, &Answer { nonce, mac })?;
        let mac: [u8; 32] = wire::receive(&mut stream, wire::GREETING_BYTES_MAX)?;
        match self.mac(Role::Caller, &nonce, &call) == blake3::Hash::from(mac) {
            true => Ok(hello),
            false => Err(Failure::Unproven),
        }
    }
}

fn nonce() -> io::Result<Nonce> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

/// Whether only this machine can reach the host of `host:port`.
fn is_here(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A connection on which everything together may take so long: a byte now and then is not enough.
struct Timed<'a> {
    stream: &'a TcpStream,
    started: Instant,
    patience: Duration,
}

impl Timed<'_> {
    fn new(stream: &TcpStream, patience: Duration) -> Timed<'_> {
        Timed { stream, started: clock::instant(), patience }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.patience.saturating_sub(self.started.elapsed());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::cluster::wire::Lane;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(100);

    fn hello(process: usize) -> Hello {
        let (version, config) = ("1".to_owned(), [7; 32]);
        Hello { version, config, process, processes: 2, workers: 1, lane: Lane::Control }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (caller, listener.accept().unwrap().0)
    }

    /// Both sides' results, with one key each.
    fn meet(caller: &[u8], answerer: &[u8]) -> (Result<(), Failure>, Result<Hello, Failure>) {
        let (calling, answering) = pair();
        let key = Key::new(answerer);
        let answering = std::thread::spawn(move || key.answer(&answering, LONG));
        let called = Key::new(caller).call(&calling, &hello(1), LONG);
        drop(calling);
        (called, answering.join().unwrap())
    }

    #[test]
    fn who_knows_the_secret_is_believed_and_nobody_else() {
        let (called, answered) = meet(b"a secret of ours", b"a secret of ours");
        called.unwrap();
        assert_eq!(answered.unwrap(), hello(1));
        for (a, b) in [("a secret of ours", "another of yours"), ("", "a secret of ours")] {
            let (called, answered) = meet(a.as_bytes(), b.as_bytes());
            assert!(matches!(called, Err(Failure::Unproven)), "{called:?}");
            assert!(answered.is_err(), "{answered:?}");
        }
    }

    #[test]
    fn what_was_overheard_or_changed_proves_nothing() {
        let key = Key::new(b"a secret of ours");
        let call = Call { nonce: [1; 32], hello: hello(1) };
        let call = postcard::to_allocvec(&call).unwrap();
        // A proof for another nonce, the answerer's own words, and one over another hello.
        let other = postcard::to_allocvec(&Call { nonce: [1; 32], hello: hello(2) }).unwrap();
        for forge in [
            &(|_: &Nonce| key.mac(Role::Caller, &[0; 32], &call))
                as &dyn Fn(&Nonce) -> blake3::Hash,
            &|nonce: &Nonce| key.mac(Role::Answerer, nonce, &call),
            &|nonce: &Nonce| key.mac(Role::Caller, nonce, &other),
        ] {
            let (mut caller, answering) = pair();
            let answerer = key.clone();
            let answering = std::thread::spawn(move || answerer.answer(&answering, LONG));
            wire::send(&mut caller, &call).unwrap();
            let answer: Answer = wire::receive(&mut caller, 4096).unwrap();
            wire::send(&mut caller, forge(&answer.nonce).as_bytes()).unwrap();
            assert!(matches!(answering.join().unwrap(), Err(Failure::Unproven)));
        }
    }

    #[test]
    fn silence_and_trickles_end_and_noise_is_no_call() {
        let key = Key::new(b"");
        let (caller, answering) = pair();
        assert!(matches!(key.answer(&answering, SHORT), Err(Failure::Io(_))));
        assert!(matches!(key.call(&caller, &hello(1), SHORT), Err(Failure::Io(_))));
        // A byte now and then does not extend the time.
        let (mut caller, answering) = pair();
        let trickle = std::thread::spawn(move || {
            while caller.write_all(&[0]).is_ok() {
                std::thread::sleep(SHORT / 4);
            }
        });
        assert!(matches!(key.answer(&answering, SHORT), Err(Failure::Io(_))));
        drop(answering);
        trickle.join().unwrap();
        let (mut caller, answering) = pair();
        caller.write_all(&[255; 64]).unwrap();
        assert!(matches!(key.answer(&answering, LONG), Err(Failure::Io(_))));
    }

    #[test]
    fn a_secret_is_needed_where_others_reach_the_ports() {
        let config = |sets: &[&str]| {
            let mut layers = omnify_config::Layers::new().set("cluster.secret_env=").unwrap();
            for set in sets {
                layers = layers.set(set).unwrap();
            }
            layers.build().unwrap().validate().unwrap()
        };
        let hosts = |list: &[&str]| list.iter().map(|&host| host.to_owned()).collect::<Vec<_>>();
        let here = hosts(&["127.0.0.1:1", "localhost:2", "[::1]:3"]);
        assert!(Key::of(&config(&[]), &here).is_ok());
        let problem =
            |sets: &[&str], hosts: &[String]| Key::of(&config(sets), hosts).err().unwrap().0;
        for other in ["10.0.0.1:1", "omnify-0.peers:7000", "0.0.0.0:1"] {
            assert!(problem(&[], &hosts(&["127.0.0.1:1", other])).contains("secret"), "{other}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let set = format!("cluster.secret_file={}", file.path().display());
        assert!(problem(&[&set], &here).contains("holds 0 bytes"));
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let key = Key::of(&config(&[&set]), &hosts(&["10.0.0.1:1"])).unwrap();
        assert_eq!(key.0, Key::new(b"0123456789abcdef").0, "blanks around it do not count");
        assert!(problem(&["cluster.secret_file=no/such/file"], &here).contains("no/such/file"));
    }
}
