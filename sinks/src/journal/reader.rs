//! Reads the journal, one frame in memory at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

use omnify_operators::model::{Registry, Tick};

use super::JournalError;
use super::decode::{self, Names};
use super::entry::TickEntry;
use super::segment::{self, Link, SegmentReader, Step};

/// The segments of a journal. A journal that is being written can be read as well: what is seen is
/// what was there when a segment was read.
#[derive(Clone, Debug)]
pub struct JournalReader {
    segments: Vec<(Tick, PathBuf, Option<Link>)>,
    /// The segment before the first that is here.
    previous: Option<Link>,
}

impl JournalReader {
    /// Lists the segments in `dir` and checks that they follow one another.
    pub fn open(dir: &Path) -> Result<JournalReader, JournalError> {
        let segments = segment::chain(dir)?;
        let previous = match segments.first() {
            Some((_, path, _)) => segment::header(path)?.previous,
            None => None,
        };
        Ok(JournalReader { segments, previous })
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The ticks above `after`, ascending, with ids of `registry`, where unknown names are interned.
    ///
    /// `None` is everything that is there. `Some` is refused when ticks above it may have been
    /// removed: a tail must not have a gap at its start.
    pub fn ticks(
        &self,
        registry: &Arc<Registry>,
        after: Option<Tick>,
    ) -> Result<Ticks, JournalError> {
        let needed = after.map_or(0, |after| after.saturating_add(1));
        if let (Some((first, path, _)), Some(previous), Some(_)) =
            (self.segments.first(), self.previous, after)
            && *first > needed
        {
            let previous = segment::name(previous.first_tick);
            return Err(JournalError::Missing { path: path.clone(), previous });
        }
        Ok(self.above(registry, after))
    }

    /// The ticks above `after` that are there.
    pub(super) fn above(&self, registry: &Arc<Registry>, after: Option<Tick>) -> Ticks {
        let needed = after.map_or(0, |after| after.saturating_add(1));
        let skipped = self.segments.partition_point(|(first, _, _)| *first <= needed);
        let segments = self.segments[skipped.saturating_sub(1)..].to_vec();
        Ticks {
            registry: registry.clone(),
            after,
            segments: segments.into_iter(),
            current: None,
            ready: Vec::new().into_iter(),
            last: None,
            torn_bytes: 0,
            ended: false,
        }
    }
}

/// An iterator over ticks; see [`JournalReader::ticks`]. It ends after the first error.
pub struct Ticks {
    registry: Arc<Registry>,
    after: Option<Tick>,
    segments: vec::IntoIter<(Tick, PathBuf, Option<Link>)>,
    current: Option<(SegmentReader, Names)>,
    ready: vec::IntoIter<TickEntry>,
    last: Option<Tick>,
    torn_bytes: u64,
    ended: bool,
}

impl Ticks {
    /// Bytes behind the last tick that a crash left, once the end was reached.
    pub fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    /// Reads the next frame; false at the end.
    fn load(&mut self) -> Result<bool, JournalError> {
        let (reader, names) = match &mut self.current {
            Some(current) => current,
            empty => {
                let Some((_, path, counts)) = self.segments.next() else { return Ok(false) };
                empty.insert((SegmentReader::open(&path, counts)?, Names::default()))
            }
        };
        let (offset, content) = match reader.next()? {
            Step::End { torn_bytes } => {
                self.torn_bytes = torn_bytes;
                self.current = None;
                return Ok(true);
            }
            Step::Frame { offset, payload } => {
                (offset, decode::decode(payload, names, &self.registry, self.after))
            }
        };
        let content = content.map_err(|bad| reader.senseless(offset, &bad))?;
        if let (Some(first), Some(last)) = (content.ticks.first(), self.last)
            && first.tick <= last
        {
            let what = format!("tick {} comes after tick {last}", first.tick);
            return Err(reader.senseless(offset, &super::bits::Bad(what)));
        }
        self.last = content.ticks.last().map(|entry| entry.tick).or(self.last);
        self.ready = content.ticks.into_iter();
        Ok(true)
    }
}

impl Iterator for Ticks {
    type Item = Result<TickEntry, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            if let Some(entry) = self.ready.next() {
                return Some(Ok(entry));
            }
            match self.load() {
                Ok(more) => self.ended = !more,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
