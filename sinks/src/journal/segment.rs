//! Segments: their names, their headers, and reading one frame by frame.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use omnify_operators::model::Tick;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::JournalError;
use super::bits::Bad;
use super::entry::StartRecord;
use super::frame::{self, HEAD_BYTES, Head};

const MAGIC: [u8; 8] = *b"OMNIFYJL";
/// The version of header and frame. Columns have their own way to grow.
const FORMAT: u32 = 1;
/// Magic, format, length of the JSON.
const FIXED_BYTES: usize = 16;
/// Longest header JSON: it is a few hundred bytes.
const JSON_BYTES_MAX: usize = 64 * 1024;
const EXTENSION: &str = "omj";
/// Ending of a segment that is being started.
pub(super) const STARTING: &str = "omj.tmp";
const BUFFER_BYTES: usize = 256 * 1024;

/// What a segment says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Program that wrote it.
    pub(super) created_by: String,
    /// The first tick that it may hold.
    pub(super) first_tick: Tick,
    /// The segment before, unless this is the first ever.
    #[serde(default)]
    pub(super) previous: Option<Link>,
    /// The process that wrote it.
    #[serde(default)]
    pub(super) start: Option<StartRecord>,
}

/// How far a segment counts, as its successor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Link {
    /// Its first tick, which is its name.
    pub(super) first_tick: Tick,
    /// Its bytes; anything behind them was never committed.
    pub(super) bytes: u64,
    /// Check of its last frame.
    pub(super) check: u64,
}

/// The path of the segment that begins with `first_tick`.
pub(super) fn path(dir: &Path, first_tick: Tick) -> PathBuf {
    dir.join(name(first_tick))
}

/// The name of the segment that begins with `first_tick`.
pub(super) fn name(first_tick: Tick) -> String {
    format!("journal-{first_tick:020}.{EXTENSION}")
}

/// The first tick of the segment of this name; `None` when it is none.
pub(crate) fn first_tick_of(name: &str) -> Option<Tick> {
    let digits = name.strip_prefix("journal-")?.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// The segments of the journal in `dir` by their first tick, oldest first. No folder is no segments.
pub fn list(dir: &Path) -> Result<Vec<(Tick, PathBuf)>, JournalError> {
    let io = |error| JournalError::io("list", dir)(error);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut segments = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let first_tick = name.to_str().and_then(first_tick_of);
        segments.extend(first_tick.map(|first_tick| (first_tick, entry.path())));
    }
    segments.sort_unstable();
    Ok(segments)
}

impl Header {
    /// The bytes of the header, and their check.
    pub(super) fn write(&self) -> (Vec<u8>, u64) {
        // Numbers and strings only: encoding cannot fail.
        let json = serde_json::to_vec(self).expect("a header is plain JSON");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&json);
        let check = xxh3_64(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        (bytes, check)
    }
}

/// Reads a segment from its start.
pub(super) struct SegmentReader {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    file: BufReader<File>,
    /// Bytes of the segment that count.
    end: u64,
    /// Start of the next frame.
    at: u64,
    /// Check of the header.
    salt: u64,
    /// Check of the frame before.
    chain: u64,
    /// True when `end` is where the file happens to end, so that its last commit may be torn.
    open_end: bool,
    payload: Vec<u8>,
}

/// The next of a segment.
pub(super) enum Step<'a> {
    /// A sound frame.
    Frame {
        /// Where it begins.
        offset: u64,
        /// What it holds.
        payload: &'a [u8],
    },
    /// The end; this many bytes behind it are what a crash left.
    End {
        /// Bytes to cut.
        torn_bytes: u64,
    },
}

impl SegmentReader {
    /// Opens the segment at `path`. `counts` is what its successor says of it; without one it is
    /// the last, whose end may be torn.
    pub(super) fn open(path: &Path, counts: Option<Link>) -> Result<SegmentReader, JournalError> {
        let io = || JournalError::io("read", path);
        let file = File::open(path).map_err(io())?;
        let length = file.metadata().map_err(io())?.len();
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let (header, at, chain) = read_header(path, &mut file)?;
        let end = counts.map_or(length, |link| link.bytes);
        if end > length || end < at {
            let what = format!("{length} bytes are there, {end} were written");
            return Err(damaged(path, length.min(end), what));
        }
        let open_end = counts.is_none();
        let path = path.to_owned();
        let (salt, payload) = (chain, Vec::new());
        Ok(SegmentReader { path, header, file, end, at, salt, chain, open_end, payload })
    }

    /// Where the next frame begins.
    pub(super) fn offset(&self) -> u64 {
        self.at
    }

    /// The link to what was read so far.
    pub(super) fn link(&self) -> Link {
        Link { first_tick: self.header.first_tick, bytes: self.at, check: self.chain }
    }

    /// The error for a frame that was read whole, yet makes no sense.
    pub(super) fn senseless(&self, offset: u64, bad: &Bad) -> JournalError {
        damaged(&self.path, offset, bad.to_string())
    }

    /// Reads the next frame.
    pub(super) fn next(&mut self) -> Result<Step<'_>, JournalError> {
        let left = self.end - self.at;
        if left == 0 {
            return Ok(Step::End { torn_bytes: 0 });
        }
        let mut head = [0; HEAD_BYTES];
        let whole = left >= HEAD_BYTES as u64;
        if whole {
            self.file.read_exact(&mut head).map_err(JournalError::io("read", &self.path))?;
        }
        let head = if whole { Head::read(&head) } else { None };
        match head {
            Some(head) if (HEAD_BYTES + head.length) as u64 <= left => {
                self.payload.resize(head.length, 0);
                self.file
                    .read_exact(&mut self.payload)
                    .map_err(JournalError::io("read", &self.path))?;
                if head.chain != self.chain {
                    // Sound in itself, yet not the one that follows: never the work of a crash.
                    if head.fits(self.salt, &self.payload) {
                        let what = "a frame does not continue the one before it";
                        return Err(damaged(&self.path, self.at, what.to_owned()));
                    }
                    return self.broken("a frame's head is not what was written");
                }
                if !head.fits(self.salt, &self.payload) {
                    return self.broken("a frame fails its checksum");
                }
                let offset = self.at;
                self.at += (HEAD_BYTES + head.length) as u64;
                self.chain = head.check;
                Ok(Step::Frame { offset, payload: &self.payload })
            }
            Some(_) => self.broken("a frame is longer than the file"),
            None => self.broken("no frame begins here"),
        }
    }

    /// Tells a torn end from damage.
    fn broken(&mut self, what: &str) -> Result<Step<'_>, JournalError> {
        let mut rest = Vec::new();
        if self.open_end {
            self.file
                .seek(SeekFrom::Start(self.at))
                .and_then(|_| self.file.read_to_end(&mut rest))
                .map_err(JournalError::io("read", &self.path))?;
        }
        match frame::find_first(self.salt, &rest) {
            None if self.open_end => Ok(Step::End { torn_bytes: rest.len() as u64 }),
            None => Err(damaged(&self.path, self.at, what.to_owned())),
            Some(after) => {
                let what = format!("{what}, and {after} bytes on there is a later commit");
                Err(damaged(&self.path, self.at, what))
            }
        }
    }
}

fn damaged(path: &Path, offset: u64, what: String) -> JournalError {
    JournalError::Damaged { path: path.to_owned(), offset, what }
}

/// Reads a header; returns it with its length and check.
fn read_header(path: &Path, file: &mut impl Read) -> Result<(Header, u64, u64), JournalError> {
    let read = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(path, 0, "its header ends early".to_owned()),
        _ => JournalError::io("read", path)(error),
    };
    let mut bytes = vec![0; FIXED_BYTES];
    file.read_exact(&mut bytes).map_err(read)?;
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    let (format, length) = (number(8), number(12) as usize);
    if bytes[..8] != MAGIC || length > JSON_BYTES_MAX {
        return Err(damaged(path, 0, "it does not begin as a journal segment".to_owned()));
    }
    bytes.resize(FIXED_BYTES + length, 0);
    file.read_exact(&mut bytes[FIXED_BYTES..]).map_err(read)?;
    let mut check = [0; 8];
    file.read_exact(&mut check).map_err(read)?;
    let check = u64::from_le_bytes(check);
    if xxh3_64(&bytes) != check {
        return Err(damaged(path, 0, "its header fails its checksum".to_owned()));
    }
    if format != FORMAT {
        let what = format!("format {format}, this is {FORMAT}");
        return Err(JournalError::Newer { path: path.to_owned(), what });
    }
    let header = serde_json::from_slice(&bytes[FIXED_BYTES..])
        .map_err(|error| damaged(path, FIXED_BYTES as u64, error.to_string()))?;
    Ok((header, (bytes.len() + 8) as u64, check))
}

/// Reads only the header of a segment.
pub(super) fn header(path: &Path) -> Result<Header, JournalError> {
    let mut file = File::open(path).map_err(JournalError::io("read", path))?;
    read_header(path, &mut file).map(|(header, _, _)| header)
}

/// The segments of `dir` with what their successors say of them, checked to follow one another.
pub(super) fn chain(dir: &Path) -> Result<Vec<(Tick, PathBuf, Option<Link>)>, JournalError> {
    let segments = list(dir)?;
    let mut chain: Vec<(Tick, PathBuf, Option<Link>)> = Vec::with_capacity(segments.len());
    for (first_tick, path) in segments {
        let header = header(&path)?;
        if header.first_tick != first_tick {
            let what =
                format!("it is not the segment of its name: it begins with {}", header.first_tick);
            return Err(damaged(&path, FIXED_BYTES as u64, what));
        }
        if let Some((before, _, counts)) = chain.last_mut() {
            match header.previous {
                Some(link) if link.first_tick == *before => *counts = Some(link),
                link => {
                    let previous = link.map_or("nothing".to_owned(), |l| name(l.first_tick));
                    return Err(JournalError::Missing { path, previous });
                }
            }
        }
        chain.push((first_tick, path, None));
    }
    Ok(chain)
}
