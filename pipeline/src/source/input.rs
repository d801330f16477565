//! Bytes of a file, decompressed as its first bytes say (never its name), through a bounded window.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::SourceError;

/// Bytes read at a time: large enough that system calls do not show.
const CHUNK_BYTES: usize = 256 << 10;

/// What a file turned out to be.
pub(super) enum Input {
    /// Parquet, which is read by column.
    Parquet,
    /// Text, plain or decompressed.
    Text(Window),
}

/// Opens the file and looks at its first bytes.
pub(super) fn open(path: &Path) -> Result<Input, SourceError> {
    let failed = |source| SourceError::Open { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut magic = [0; 4];
    let known = read_up_to(&mut file, &mut magic).map_err(failed)?;
    let magic = &magic[..known];
    if magic == b"PAR1" {
        return Ok(Input::Parquet);
    }
    let done = Arc::new(AtomicU64::new(0));
    let rest = io::Cursor::new(magic.to_vec()).chain(file);
    let counted = Counted { inner: rest, done: done.clone() };
    let reader: Box<dyn Read + Send> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(
            CHUNK_BYTES,
            counted,
        ))),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(zstd::stream::read::Decoder::new(counted).map_err(failed)?)
        }
        _ => Box::new(counted),
    };
    Ok(Input::Text(Window::new(reader, done, length)))
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

struct Counted<R> {
    inner: R,
    done: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// A window on a stream of bytes that slides forward. It holds what was read and not yet consumed;
/// whoever splits rows bounds how much that may be.
pub(super) struct Window {
    reader: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    ended: bool,
    failure: Option<io::Error>,
    done: Arc<AtomicU64>,
    length: u64,
}

impl Window {
    /// A window on `reader`; `done` counts the bytes of the file behind it, `length` is its size.
    pub(super) fn new(reader: Box<dyn Read + Send>, done: Arc<AtomicU64>, length: u64) -> Window {
        Window {
            reader,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            ended: false,
            failure: None,
            done,
            length,
        }
    }

    /// What is held.
    pub(super) fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Lets go of the first `count` bytes held.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Reads on. After a failure or at the end, [`Window::ended`] holds.
    pub(super) fn fill(&mut self) {
        if self.ended {
            return;
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < self.end + CHUNK_BYTES {
            self.buffer.resize(self.end + CHUNK_BYTES, 0);
        }
        match self.reader.read(&mut self.buffer[self.end..]) {
            Ok(0) => self.ended = true,
            Ok(count) => self.end += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                self.ended = true;
                self.failure = Some(error);
            }
        }
    }

    /// Nothing more will come.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// The end is not the true end: the stream broke.
    pub(super) fn broken(&self) -> bool {
        self.failure.is_some()
    }

    /// Why the stream broke.
    pub(super) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Bytes of the file read, and its length.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed).min(self.length), self.length)
    }

    /// The first byte that is not white space, after a byte-order mark, which is let go of.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while self.data().len() < 3 && !self.ended {
            self.fill();
        }
        if self.data().starts_with(b"\xef\xbb\xbf") {
            self.consume(3);
        }
        loop {
            if let Some(byte) = self.data().iter().find(|byte| !byte.is_ascii_whitespace()) {
                return Some(*byte);
            }
            // Blank lines before the first row say nothing: let go of them.
            self.consume(self.end - self.start);
            if self.ended {
                return None;
            }
            self.fill();
        }
    }
}
