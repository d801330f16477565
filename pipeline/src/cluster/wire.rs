//! Messages between the leader and a follower: their length (8 bytes, little end first), then the
//! message as postcard.

use std::io::{self, Read, Write};
use std::sync::Arc;

use omnify_operators::model::{EntityKey, Event, ReportRow};
use omnify_sinks::journal::Position;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message of somebody who has not been let in.
pub(super) const GREETING_BYTES_MAX: u64 = 4096;
/// Longest message of the control connection.
pub(super) const CONTROL_BYTES_MAX: u64 = 64 << 20;
/// Longest tick of a follower, whose whole state may leave at the last one, and longest batch of rows.
pub(super) const DATA_BYTES_MAX: u64 = 1 << 40;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lane {
    /// [`ToFollower`] one way, [`ToLeader`] the other.
    Control,
    /// Parts to the leader.
    Parts,
    /// [`FromReader`] to the leader, [`ToReader`] the other way.
    Rows,
    /// What timely's workers say to each other, in the run of this number, with this process.
    Mesh { run: u64, with: usize },
}

/// The first word of a follower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Of the program: state and parts are exchanged in its own form.
    pub(super) version: String,
    /// Of everything the output depends on.
    pub(super) config: [u8; 32],
    pub(super) process: usize,
    pub(super) processes: usize,
    /// Workers of each process.
    pub(super) workers: usize,
    pub(super) lane: Lane,
}

impl Hello {
    /// Why a process that says this cannot work with a leader that says `leader`.
    pub(super) fn problem(&self, leader: &Hello) -> Option<String> {
        let here = self.process;
        if self.version != leader.version {
            return Some(format!(
                "it runs version {}, the leader {}: install the same version everywhere",
                self.version, leader.version
            ));
        }
        if (self.processes, here == 0 || here >= leader.processes) != (leader.processes, false) {
            return Some(format!(
                "it says process {here} of {}, the leader has {} processes: give every one the \
                 same --processes and --hosts, and a --process of its own",
                self.processes, leader.processes
            ));
        }
        if self.workers != leader.workers {
            return Some(format!(
                "it has {} workers, the leader {}: set engine.workers to the same number everywhere",
                self.workers, leader.workers
            ));
        }
        (self.config != leader.config).then(|| {
            "its configuration differs from the leader's: give every process the same omnify.toml \
             and --set"
                .to_owned()
        })
    }
}

/// The leader's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Welcome {
    /// Let in, to the run of this number.
    Taken(u64),
    /// And why not.
    Refused(String),
}

/// From the leader, on the control connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToFollower {
    /// All are there: begin. The engine's page, if there is one, is at this port.
    Go { http_port: Option<u16> },
    /// Entities that have got an id, in order of their ids; none is only a sign of life.
    Entities(Vec<EntityKey>),
    /// The engine has ended as it should.
    End,
}

/// To the leader, on the control connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToLeader {
    /// A sign of life, and what an operator should know of this process: codes and texts.
    Beat(Vec<(String, String)>),
    /// Somebody asked this process to end: all should.
    Stop,
}

/// To the leader, on the rows connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromReader {
    /// This process begins to read a partition.
    Claim { source: Arc<str>, partition: i32 },
    /// What it read of one.
    Rows(RowsSent),
}

/// What was read of one partition.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RowsSent {
    /// Entities that follow those of the messages before: the n-th of all on this connection is the
    /// one that rows call by the id n.
    pub(super) keys: Vec<EntityKey>,
    pub(super) claim: u64,
    pub(super) position: Position,
    pub(super) messages: u64,
    pub(super) events: Vec<Event>,
    pub(super) reports: Vec<ReportRow>,
    pub(super) dead: Vec<LetterSent>,
    pub(super) rows: u64,
    pub(super) ignored: u64,
    /// As JSON: their form depends on what they say.
    pub(super) controls: Vec<String>,
    /// For how long the first of the messages has waited.
    pub(super) age_us: u64,
}

/// A refused row.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LetterSent {
    pub(super) source: Arc<str>,
    pub(super) row: u64,
    pub(super) tenant: Option<Arc<str>>,
    pub(super) reason: String,
    pub(super) detail: String,
    pub(super) bytes: Vec<u8>,
    pub(super) length: u64,
}

/// From the leader, on the rows connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToReader {
    /// The engine stands where it was: read. So much, in rows and messages, may be on its way.
    Begin { room: u64 },
    /// The answer to a claim.
    Claimed { number: u64, next: Option<i64> },
    /// So much has been taken in.
    Taken(u64),
}

/// Sends a message.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 8];
    bytes = postcard::to_extend(message, bytes).map_err(io::Error::other)?;
    let length = bytes.len() as u64 - 8;
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    to.write_all(&bytes)?;
    to.flush()
}

/// Receives a message of at most `bytes_max`. Memory is taken for what has come, not for what is
/// announced.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read, bytes_max: u64) -> io::Result<T> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > bytes_max {
        return Err(io::Error::other(format!("a message of {length} bytes, at most {bytes_max}")));
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_or_not_at_all() {
        let mut wire = Vec::new();
        send(&mut wire, &Welcome::Taken(7)).unwrap();
        let read = |wire: &[u8], max| receive::<Welcome>(&mut &wire[..], max);
        assert!(matches!(read(&wire, 100), Ok(Welcome::Taken(7))));
        assert!(read(&wire[..wire.len() - 1], 100).is_err());
        assert!(read(&wire, 1).is_err());
        assert!(read(&[255; 8], u64::MAX).is_err());
    }

    #[test]
    fn what_differs_is_named() {
        let leader = Hello {
            version: "1".into(),
            config: [0; 32],
            process: 0,
            processes: 2,
            workers: 3,
            lane: Lane::Control,
        };
        let fits = Hello { process: 1, ..leader.clone() };
        assert_eq!(fits.problem(&leader), None);
        let says = |hello: Hello, what: &str| {
            let problem = hello.problem(&leader).unwrap();
            assert!(problem.contains(what), "{problem}");
        };
        says(Hello { version: "2".into(), ..fits.clone() }, "version 2");
        says(Hello { process: 0, ..fits.clone() }, "process 0 of 2");
        says(Hello { process: 2, ..fits.clone() }, "process 2 of 2");
        says(Hello { processes: 3, ..fits.clone() }, "of 3");
        says(Hello { workers: 1, ..fits.clone() }, "1 workers");
        says(Hello { config: [1; 32], ..fits.clone() }, "configuration");
    }
}
